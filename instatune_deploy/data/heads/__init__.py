"""One head a task: what is particular to it."""

from instatune_deploy.data.heads.base import Head
from instatune_deploy.data.heads.classification import TextClassification, TextRegression
from instatune_deploy.data.heads.questions import QuestionAnswering
from instatune_deploy.data.heads.tokens import TokenClassification
from instatune_deploy.data.heads.visual import ImageClassification, VisualQuestionAnswering
from instatune_deploy.values.recipe import Task

_HEADS: dict[Task, Head] = {
    head.task: head
    for head in (
        TextClassification(),
        TextRegression(),
        TokenClassification(),
        QuestionAnswering(),
        ImageClassification(),
        VisualQuestionAnswering(),
    )
}


def get_head(task: Task) -> Head:
    """The head of a task."""
    return _HEADS[task]
