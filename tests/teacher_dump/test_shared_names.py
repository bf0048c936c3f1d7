"""Constants that `vlm` and `storage` both need, though neither imports the other."""

from alignkd.storage.read import lm_head
from alignkd.storage.record import record
from alignkd.vlm.families.mobilevlm.inputs import templates
from alignkd.vlm.stem import teacher_head


def test_both_rooms_have_the_same_values() -> None:
    assert record.IMAGE_TOKEN_ID == templates.IMAGE_TOKEN_ID
    assert record.IGNORE_LABEL == templates.IGNORE_LABEL
    assert (lm_head.LM_HEAD_FILE, lm_head.LM_HEAD_KEY) == (teacher_head.LM_HEAD_FILE, teacher_head.LM_HEAD_KEY)
