"""The table of methods. A new method is one file and one line here; a user's own is `my.module:Class`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, cast

from augment.method import Learner, Method
from recognizer.errors import UserError
from recognizer.settings import make

# name -> ("module:Class", what it does); a module is imported only when its method is used
METHODS = {
    "captcha": ("augment.methods.captcha:Captcha", "draws any text with the captcha library, seeded"),
    "render": ("augment.methods.render:Render", "draws any text in many fonts and many looks of our own"),
    "match": ("augment.methods.match:Match", "draws as render does, in looks bred for your pictures, labelled or not"),
    "splice": ("augment.methods.splice:Splice", "cuts real pictures between their characters and joins new texts"),
    "vae": ("augment.methods.vae:Vae", "wanders near your pictures with a conditional VAE that learned them"),
    "cgan": ("augment.methods.gan:Cgan", "draws with a plain conditional GAN: the control of wgan"),
    "wgan": ("augment.methods.gan:Wgan", "draws with a conditional WGAN-GP that learned your pictures"),
    "diffusion": ("augment.methods.diffusion:Diffusion", "draws by diffusion, from nothing or from your pictures"),
    "sd": ("augment.methods.sd:Sd", "repaints a real picture with Stable Diffusion, from weights of your own"),
    "classical": ("augment.methods.classical:Classical", "bends, blurs and recolours a real picture; keeps its text"),
}
CONTRACT = ("Settings", "needs_source", "exact_text", "make")  # what each class has, as augment.method.Method says


def load_class(name: str) -> type[Method]:
    """The class of a method by its name in `METHODS`, or a user's own by `my.module:Class`, of a module that is
    installed or in the folder where the command is given.

    Raises:
        UserError: no such method, or one that does not keep the contract.
    """
    where = METHODS[name][0] if name in METHODS else name
    module, colon, attribute = where.partition(":")
    if not (colon and all(part.isidentifier() for part in (*module.split("."), attribute))):
        raise UserError(f"no method is called {name!r}; there are {', '.join(METHODS)}, or your own my.module:Class")
    if name not in METHODS and (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise UserError(f"--method {name}: there is no module {module!r}") from None
        raise
    except AttributeError:
        raise UserError(f"--method {name}: {module} has no {attribute!r}") from None
    if lacking := [part for part in CONTRACT if not (isinstance(cls, type) and hasattr(cls, part))]:
        raise UserError(f"--method {name}: a class with {', '.join(CONTRACT)}; this has no {lacking[0]}")
    return cast("type[Method]", cls)


def load_learner(name: str) -> type[Learner]:
    """The class of a method that learns.

    Raises:
        UserError: no such method, or one that does not learn.
    """
    cls = load_class(name)
    if not hasattr(cls, "fit"):
        raise UserError(f"--method {name} does not learn: augment synthesize makes its pictures at once")
    return cast("type[Learner]", cls)


def create(name: str, settings: dict[str, Any] | None = None) -> Method:
    """A method with its settings.

    Raises:
        UserError: no such method, or a setting that it refuses.
    """
    cls = load_class(name)
    return cls(make(cls.Settings, settings or {}, f"settings of {name}"))
