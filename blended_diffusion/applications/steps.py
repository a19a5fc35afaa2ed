"""Several edits of one picture, one after another, each on the best picture of the one before.

What belongs here is what a step's picture is, where it is kept, and what may follow on it. What people may write in a
step belongs to `step_files`, the edits to the editor and the other applications.
"""

import copy
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args, get_type_hints

import PIL.Image
import PIL.ImageOps
from diffusers.utils import make_image_grid

from blended_diffusion.applications.regions import Region, edit_regions
from blended_diffusion.applications.registry import application_of
from blended_diffusion.applications.step_files import Step, parse_steps
from blended_diffusion.editing.edit import Edit, refuse_unknown_settings
from blended_diffusion.editing.editor import Edited, Editor, FolderEditor
from blended_diffusion.editing.results import refuse_if_used
from blended_diffusion.masks.source import MaskSource, look_at_mask
from blended_diffusion.painters.settings import EditSettings
from blended_diffusion.pictures import gallery
from blended_diffusion.pictures.inputs import Mask, Photo, read_photo, shows
from blended_diffusion.pictures.whole_files import whole_file


# of the overview's pictures, in pixels, and how many stand in a row
OVERVIEW_SIDE, COLUMNS = 320, 5

RESULT = "result.png"

AnyEditor = TypeVar("AnyEditor", bound=Editor)


def run_steps(
    editor: Editor,
    image: PIL.Image.Image | Photo,
    steps: Sequence[Step | Mapping[str, Any]],
    title: str = "",
    tell: Callable[[str], None] = lambda _: None,
) -> list[PIL.Image.Image]:
    """Takes the steps.

    A [`FolderEditor`] writes all there is of each to `step_01/`, `step_02/` …, its picture to `result.png` there, and
    in the end `overview.png`. With `resume` it keeps what is finished.

    Args:
        editor ([`Editor`]): makes the pictures.
        image (`PIL.Image.Image` or [`Photo`]): what the first step edits.
        steps (`Sequence[Step]`): or mappings, which are checked by [`parse_steps`].
        title (`str`): of the overview.
        tell (`Callable`): is told what begins.

    Returns:
        `list[PIL.Image.Image]`: the picture after each step; the last one is the result.

    Raises:
        ValueError: something is wrong with a step, or its folder holds another edit; the sentence names its number.
    """
    if not are_checked(steps):
        steps = parse_steps(steps)
    photo = image if isinstance(image, Photo) else keep_picture(editor, image, "photo.png")
    check_steps(editor, photo, steps)
    pictures = [photo.image]
    for number, step in enumerate(steps, start=1):
        tell(f"step {number} of {len(steps)}: {step.title}")
        step_editor = within(editor, step_folder(number), step)
        try:
            done = run_step(step_editor, photo, step)
            photo = keep_result(step_editor, done, photo, within(editor, step_folder(number + 1)))
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from error
        except ArithmeticError as error:
            raise ArithmeticError(f"step {number}: {error}") from error
        pictures.append(photo.image)
    if isinstance(editor, FolderEditor):
        labels = ["photo", *(f"{number}  ·  {step.title}" for number, step in enumerate(steps, start=1))]
        sheet = overview(pictures, labels, title, best=len(steps))
        gallery.write_png(sheet, editor.folder / "overview.png", photo.icc_profile)
    return pictures[1:]


def are_checked(steps: Sequence[Step | Mapping[str, Any]]) -> TypeGuard[Sequence[Step]]:
    """Whether all of these are steps already, not just mappings that describe some."""
    return all(isinstance(step, Step) for step in steps)


def run_step(editor: Editor, photo: Photo, step: Step) -> Edited | PIL.Image.Image:
    """Takes one step in the editor's own folder.

    Raises:
        ValueError: a file cannot be used, or the edit is refused.
    """
    if step.regions:
        regions = [
            Region(look_at_mask(mask, photo.image, argument=f"mask of region {number}"), prompt)
            for number, (mask, prompt) in enumerate(step.regions, start=1)
        ]
        return edit_regions(editor, photo, regions, EditSettings(**{"prompt": "", **step.settings}))
    if step.application is None:
        mask = None if step.mask is None else find_mask(editor, step.mask, photo, "mask.png", "mask", **read_as(step))
        return editor.edit(photo, mask, EditSettings(**step.settings))
    function = application_of(step.application)
    arguments = dict(step.arguments)
    for name, source in masks_of(step).items():
        arguments[name] = find_mask(editor, source, photo, f"{name}.png", name, **read_as(step))
    for name, value in arguments.items():
        if isinstance(value, Path):
            arguments[name] = read_photo(value, name)
    if "settings" in get_type_hints(function):
        arguments["settings"] = EditSettings(**{"prompt": "", **step.settings})
    return function(editor, photo, **arguments)


def check_steps(editor: Editor, photo: Photo, steps: Sequence[Step]) -> None:
    """Says what is wrong with any step before the first is taken, as far as it can be known.

    Masks are read as long as the picture's size is: an application may change it.

    Raises:
        ValueError: a mask cannot be used, or the model does not accept a step's settings; the sentence names it.
    """
    known = True
    for number, step in enumerate(steps, start=1):
        try:
            check_step(editor, photo, step, known)
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from error
        known = known and step.application is None


def check_step(editor: Editor, photo: Photo, step: Step, size_is_known: bool = True) -> None:
    """Raises a `ValueError` for what is wrong with a step, without taking it. Nothing is written."""
    settings = EditSettings(**{"prompt": "", **step.settings})
    # what a network finds it finds in the picture that the step is given
    later = {name for name, mask in masks_of(step).items() if isinstance(mask, MaskSource) and mask.needs_network}
    found = {}
    for name, mask in masks_of(step).items():
        if size_is_known and name not in later:
            found[name] = look_at_mask(mask, photo.image, argument=name, **read_as(step))
    if size_is_known and not later and not step.regions and step.application is None:
        # all that is asked of an edit before its first picture
        Edit.prepare(editor.painter, photo, found.get("mask"), settings)
        return
    if step.regions or step.application is not None:
        settings = replace(settings, prompt=step.title)  # which words go where is theirs to say
    refuse_unknown_settings(editor.painter, settings)
    editor.painter.check(settings, found.get("mask"))


def read_as(step: Step) -> dict[str, bool]:
    """How the greys of a step's mask are taken: arguments of [`look_at_mask`]."""
    settings = step.settings
    return {"invert": settings.get("invert_mask", False), "keep_greys": settings.get("mask_is_change_map", False)}


def masks_of(step: Step) -> dict[str, Path | PIL.Image.Image | MaskSource]:
    """A step's masks and what to call them: of an application, its parameters' names."""
    named = {f"mask of region {number}": mask for number, (mask, _) in enumerate(step.regions, start=1)}
    if step.mask is not None:
        named["mask"] = step.mask
    if step.application is not None:
        hints = get_type_hints(application_of(step.application))
        given = {name: value for name, value in step.arguments.items() if value is not None}
        named |= {
            name: value for name, value in given.items() if Mask in (hints.get(name), *get_args(hints.get(name)))
        }
    return named


# ---------------------------------------------------------------------------------------------------------------------
# Where things are
# ---------------------------------------------------------------------------------------------------------------------


def step_folder(number: int) -> str:
    return f"step_{number:02d}"


def within(editor: AnyEditor, name: str, step: Step | None = None) -> AnyEditor:
    """The same editor in a subfolder of its own, with what a step says about its pictures."""
    inner = copy.copy(editor)
    if isinstance(inner, FolderEditor):
        inner.folder = inner.folder / name
    if step is not None:
        inner.num_images = step.num_images or inner.num_images
        inner.seed = inner.seed if step.seed is None else step.seed
    return inner


def keep_result(
    editor: Editor, done: Edited | PIL.Image.Image, before: Photo, following: Editor | None = None
) -> Photo:
    """A step's picture, as the photo of the next one, which the editor `following` takes.

    Raises:
        ValueError: the folder of `following` holds pictures that were made from another one.
    """
    image = done.best if isinstance(done, Edited) else done
    if not isinstance(editor, FolderEditor):
        return editor.keep_photo(image, "", before.icc_profile)
    path = editor.folder / RESULT
    if not shows(path, image):
        if following is not None and path.exists():
            refuse_another_source(following, "the step before it has another picture now")
        source = None if not isinstance(done, Edited) else ranked_picture(editor, done)
        if source is not None and shows(source, image):
            with whole_file(path) as part:
                shutil.copyfile(source, part)  # with the record of its making
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            gallery.write_png(image, path, before.icc_profile)
    return Photo(image, before.icc_profile, path.absolute(), hashlib.sha256(path.read_bytes()).hexdigest())


def ranked_picture(editor: FolderEditor, done: Edited) -> Path | None:
    """The file of the best picture, if the edit is the editor's own."""
    path = editor.folder / "ranked" / f"{done.clip_distances[0]:.4f}_{editor.stem}_seed_{done.seeds[0]}.png"
    return path if path.exists() else None


def keep_picture(editor: Editor, image: PIL.Image.Image, file: str) -> Photo:
    """A picture that came from no file: a folder's editor writes it to `inputs/`, where `replay` finds it.

    Raises:
        ValueError: the folder holds pictures that were made from another one.
    """
    if not isinstance(editor, FolderEditor):
        return editor.keep_photo(image, "")
    path = (editor.folder / "inputs" / file).absolute()
    if not shows(path, image):
        if path.exists():
            refuse_another_source(editor, f"{path.stem} is another one now")
        path.parent.mkdir(parents=True, exist_ok=True)
        gallery.write_png(image, path)
    return Photo(image, None, path, hashlib.sha256(path.read_bytes()).hexdigest())


def find_mask(
    editor: Editor,
    value: Path | PIL.Image.Image | MaskSource,
    photo: Photo,
    file: str = "mask.png",
    argument: str = "mask",
    invert: bool = False,
    keep_greys: bool = False,
) -> Mask:
    """The mask of a file, a picture or a description; one that came from no file is written for `replay`.

    Raises:
        ValueError: it cannot be used, or the folder holds pictures that were made from another one.
    """
    mask = look_at_mask(value, photo.image, invert, argument, keep_greys)
    if isinstance(value, Path) or not isinstance(editor, FolderEditor):
        return mask
    # as it is before it is inverted: the record says that it is to be
    kept = keep_picture(editor, PIL.ImageOps.invert(mask.image) if invert else mask.image, file)
    return Mask(mask.image, kept.path, kept.sha256)


def refuse_another_source(editor: Editor, reason: str) -> None:
    """Raises a `ValueError` if the editor's folder holds finished pictures."""
    if isinstance(editor, FolderEditor):
        held = f"pictures that were made from something else ({reason})"
        refuse_if_used(editor.folder, held, editor.argument, below=True)


# ---------------------------------------------------------------------------------------------------------------------
# What people look at
# ---------------------------------------------------------------------------------------------------------------------


def overview(
    pictures: Sequence[PIL.Image.Image],
    labels: Sequence[str],
    title: str = "",
    note: str = "",
    best: int | None = None,
) -> PIL.Image.Image:
    """Pictures side by side, a label under each.

    Args:
        pictures (`Sequence[PIL.Image.Image]`): of any sizes and modes.
        labels (`Sequence[str]`): one for each.
        title (`str`), note (`str`): on the left and on the right above them.
        best (`int`, *optional*): the number of the one to mark, from 0.

    Returns:
        `PIL.Image.Image` of mode `RGB`.
    """
    shown = []
    for picture in pictures:
        small = PIL.ImageOps.contain(
            picture.convert("RGBA"), (OVERVIEW_SIDE, OVERVIEW_SIDE), PIL.Image.Resampling.LANCZOS
        )
        white = PIL.Image.new("RGBA", small.size, "white")
        shown.append(PIL.Image.alpha_composite(white, small).convert("RGB"))
    size = (max(one.width for one in shown), max(one.height for one in shown))
    tiles = [
        gallery.tile(one, size, label, best=number == best)
        for number, (one, label) in enumerate(zip(shown, labels, strict=True))
    ]
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    tiles += [PIL.Image.new("RGB", tiles[0].size, gallery.PAPER)] * (rows * columns - len(tiles))
    return gallery.titled(make_image_grid(tiles, rows, columns), title, note)
