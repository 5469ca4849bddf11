"""Lightning's way to the checkpoint file: `Trainer(plugins=[CheckpointFiles()])`."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import CheckpointIO

from mla_lm.checkpoint import file as checkpoint_file


class CheckpointFiles(CheckpointIO):
    """Saves and loads whole, verified, pickle-free files, for any callback that saves."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write Lightning's tree; see `checkpoint_file.write` for what it raises."""
        checkpoint_file.write(Path(path), checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The tree, verified, on the CPU; nothing in a file can be executed anyway."""
        return checkpoint_file.read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint that is there, and nothing that is none.

        Which files a callback deletes stands in a checkpoint: it may be old, or forged.
        """
        if Path(path).is_file() and checkpoint_file.is_one(Path(path)):
            Path(path).unlink(missing_ok=True)
