"""What the process that trainings are forked from imports: it ends with its parent, and has at hand what they need.

A killed command must leave no training behind that writes its run, and a fork that still has to import torch, and what
torch imports at an optimizer's first step, begins three seconds later.
"""

from recognizer.training.side_by_side import die_with_parent

die_with_parent()

import torch._dynamo  # noqa: E402, F401
