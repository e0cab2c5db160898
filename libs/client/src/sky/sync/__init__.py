"""Local trees on their way to the server: which files, their hashes, and only the chunks that it lacks. Knows no command."""

from __future__ import annotations

from sky.sync.upload import Progress, UploadResult, upload_tree

__all__ = ["Progress", "UploadResult", "upload_tree"]
