"""The teacher of a run: the network that `teacher.source` names, and the check that it knows its subject."""

from advtrain.teachers.checking import check_source
from advtrain.teachers.examination import Examination, examine
from advtrain.teachers.finding import find_teacher, give_teacher
from advtrain.teachers.settings import TeacherSettings, check_teacher

__all__ = [
    "Examination",
    "TeacherSettings",
    "check_source",
    "check_teacher",
    "examine",
    "find_teacher",
    "give_teacher",
]
