"""The evaluation at the end of a run in a plan: questions to answer, or what is missing to ask them."""

from dataclasses import dataclass

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.folder import benchmark_folder
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.vlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What the section `eval` asks for.

    Attributes:
        models: the models that are evaluated.
        questions: questions of each by benchmark; None where the benchmark cannot be asked.
        problems: why not, one line each.
        folder: where answers and scores go; None if no training is configured.
    """

    models: tuple[str, ...]
    questions: dict[str, int | None]
    problems: tuple[str, ...]
    folder: str | None

    def line(self) -> str:
        """The plan as one line."""
        counts = ", ".join(f"{name} {'?' if count is None else f'{count:,}'}" for name, count in self.questions.items())
        total = sum(count or 0 for count in self.questions.values())
        where = "" if self.folder is None else f" in {self.folder}"
        return f"eval      {', '.join(self.models)}: {total:,} questions each ({counts}); answers and scores{where}"


def plan_evaluation(config: RunConfig) -> EvaluationPlan | None:
    """The evaluation of a configuration; None if it has no section `eval`."""
    section = config.eval
    if section is None:
        return None
    questions: dict[str, int | None] = {}
    problems = []
    for name in section.names:
        try:
            found = BENCHMARKS[name].questions(benchmark_folder(section.data, name))
        except InputError as error:
            problems.append(f"{name}: {error}")
            questions[name] = None
        else:
            questions[name] = len(found[: section.limit])
    folder = None if config.train is None else str(section.folder(config.train.output))
    return EvaluationPlan(models=section.models, questions=questions, problems=tuple(problems), folder=folder)
