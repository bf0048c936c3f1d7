"""Open a data set of any supported format."""

from alignkd.vlm.data.conversations import ConversationFile
from alignkd.vlm.data.source import DataSet, DataSource, ReadProgress


def open_data(data: DataSet, *, progress: ReadProgress | None = None) -> DataSource:
    """The samples of one data set.

    Args:
        progress: called while files are read through.

    Raises:
        InputError: no such file, or none of a supported format.
    """
    return ConversationFile(data.path, data.images, progress=progress)
