"""Stable Diffusion img2img on real pictures, from a folder of weights on this machine. Nothing is fetched.

Rombach et al. 2022, arXiv 2112.10752, through diffusers' own pipeline. It knows nothing of which character stands
where: at high strengths it paints signs that only look like letters, so keep them low and let `augment filter` judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from pydantic import Field

from augment.generated import one_thread
from augment.method import Request
from recognizer.errors import UserError
from recognizer.settings import Settings

GRAIN = 64  # pixels that both sides of what it paints are a multiple of


class SdSettings(Settings):
    """Which weights, and how far from the real picture."""

    weights: str | None = None  # the folder of a Stable Diffusion pipeline, as save_pretrained of diffusers writes it
    prompt: str = "a scan of the printed text {text}"
    strengths: tuple[float, ...] = Field((0.25, 0.5), min_length=1)  # how far a picture is noised: one by chance
    steps: int = Field(20, ge=1, le=200)  # of which a strength runs its share
    guidance: float = Field(4.0, ge=0)
    side: int = Field(512, ge=GRAIN, le=2048)  # the longer side of what is painted, in pixels


class Sd:
    """Repaints a real picture; keeps its text where the strength is low enough."""

    Settings: ClassVar[type[Settings]] = SdSettings
    needs_source: ClassVar[bool] = True
    exact_text: ClassVar[bool] = False

    def __init__(self, settings: SdSettings) -> None:
        self.settings = settings
        if settings.weights is None:
            raise UserError(
                "sd needs weights of Stable Diffusion on this machine: "
                "--set weights=DIR, a folder that save_pretrained of diffusers wrote"
            )
        if not (Path(settings.weights) / "model_index.json").is_file():
            raise UserError(f"{settings.weights}: no pipeline of diffusers is there (it has no model_index.json)")
        for strength in settings.strengths:
            if not 0 < strength <= 1 or int(settings.steps * strength) < 1:
                raise UserError(f"at strength {strength:g} none of {settings.steps} steps runs")
        if "{text}" not in settings.prompt:
            raise UserError(f"prompt {settings.prompt!r}: write {{text}} where the text stands")

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline, on a GPU in half precision where there is one."""
        import transformers  # noqa: F401  (which diffusers would miss in many words)
        from diffusers import StableDiffusionImg2ImgPipeline

        try:
            pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
                self.settings.weights, local_files_only=True, use_safetensors=True, safety_checker=None,
                requires_safety_checker=False,
            )  # fmt: skip
        except Exception as error:  # whatever a stranger's folder makes its many loaders raise
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{self.settings.weights} is no Stable Diffusion pipeline that can be read: {line}"
            ) from None
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to("cuda", torch.float16) if torch.cuda.is_available() else pipeline

    def make(self, requests: Sequence[Request], sources: Sequence[Image.Image | None]) -> list[Image.Image]:
        """One RGB picture for each request, its source repainted, resized to the asked size.

        Raises:
            UserError: a request without a source, or weights that cannot be read.
        """
        with one_thread():
            return [self._paint(r, s) for r, s in zip(requests, sources, strict=True)]

    def _paint(self, request: Request, source: Image.Image | None) -> Image.Image:
        if source is None:
            raise UserError(f"sd varies real pictures: the request for {request.text!r} names no source")
        s, rng = self.settings, request.rng()
        scale = s.side / max(source.size)
        width, height = (max(round(side * scale / GRAIN), 1) * GRAIN for side in source.size)
        painted: Image.Image = self.pipeline(
            prompt=s.prompt.replace("{text}", request.text),
            image=source.convert("RGB").resize((width, height), Image.Resampling.LANCZOS),
            strength=float(rng.choice(s.strengths)),
            num_inference_steps=s.steps,
            guidance_scale=s.guidance,
            generator=torch.Generator("cpu").manual_seed(int(rng.integers(2**53))),
        ).images[0]
        return painted.convert("RGB").resize((request.width, request.height), Image.Resampling.LANCZOS)
