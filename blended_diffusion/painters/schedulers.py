"""Another scheduler for one edit.

What belongs here finds it by its class name among those that diffusers calls compatible.
"""

from diffusers import DiffusionPipeline, SchedulerMixin


def scheduler_named(name: str, pipe: DiffusionPipeline) -> SchedulerMixin:
    """The scheduler of this class, with the configuration of the pipeline's own, which stays as it is.

    Raises:
        ValueError: diffusers does not call it compatible with the pipeline's own.
    """
    suitable = {kind.__name__: kind for kind in (type(pipe.scheduler), *getattr(pipe.scheduler, "compatibles", []))}
    if name not in suitable:
        raise ValueError(
            f"`scheduler` is {name!r}, which does not suit this model; give one of {', '.join(sorted(suitable))}."
        )
    config = dict(pipe.scheduler.config)
    if name != type(pipe.scheduler).__name__ and str(config.get("variance_type")).startswith("learned"):
        config["variance_type"] = "fixed_small"  # others know nothing of it; the pipeline then keeps it from them
    return suitable[name].from_config(config)
