"""Which applications a step may name.

What belongs here is where they are found. Nothing here needs torch until one of them is asked for.
"""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any


# A step may be any of these: `function(editor, image, …)`, or where to import it from. It takes the picture and gives
# the edited one (or an `Edited`, whose best is taken); its other parameters are the step's keys. Add your own.
APPLICATIONS: dict[str, str | Callable[..., Any]] = {
    "background": "blended_diffusion.applications.background:replace_background",
    "extend": "blended_diffusion.applications.extend:extend",
    "remove": "blended_diffusion.applications.remove:remove",
    "scribble": "blended_diffusion.applications.scribble:scribble",
}

# parameters of an application that are not a step's to say
GIVEN_PARAMETERS = ("editor", "image", "name")


def application_of(name: str) -> Callable[..., Any]:
    """The function of a name in [`APPLICATIONS`]."""
    found = APPLICATIONS[name]
    return resolve_name(found) if isinstance(found, str) else found
