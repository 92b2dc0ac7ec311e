"""The train stage: two-phase transfer learning, or the import of a finished model."""

from pathlib import Path

from export.errors import add_note
from pipeline.artifacts.inputs import Consulted, Inputs, Outside, Split
from pipeline.artifacts.results import Trained
from pipeline.recipe.schema import Recipe
from pipeline.terminal.console import start_tensorflow
from pipeline.workflow.stage import Stage

CHECKPOINT = ".checkpoint"  # below a recipe's artifacts


def run(inputs: Inputs, settings: Recipe, out: Path) -> Trained:
    """Train the model, resuming an interrupted training of the same inputs, or import a finished one."""
    from pipeline.training.checkpoint import Checkpoint

    checkpoint = Checkpoint(inputs.path(CHECKPOINT), inputs.key, settings.train.checkpoint_seconds)
    try:
        start_tensorflow()
        from pipeline.training.train import train  # imports Keras, only after TensorFlow's messages are off

        result = train(settings, inputs.images, out, checkpoint)
    except (KeyboardInterrupt, OSError) as error:
        if not settings.model.finished:
            add_note(error, checkpoint.keep())
        raise
    checkpoint.remove()
    return result


STAGE = Stage(
    "train",
    inputs=(
        *(Split("train"), Split("validation"), Split("calibration", decides=False), Split("test", decides=False)),
        *(Outside("model.path"), Outside("model.weights"), Outside("model.preprocessing.mean")),
        Consulted(CHECKPOINT),
    ),
    keys=("data", "model", "train"),
    run=run,
    result=Trained,
    takes_new_images=True,
)
