"""What counts as shown: by which accuracy, from how many seeds on, and within which margin."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from tracking.accuracy import BENCHMARK, TOP1
from tracking.curves import ID, OOD


@dataclass(frozen=True)
class Terms:
    """What counts as shown; accuracies are fractions."""

    alpha: float = 0.05
    id_margin: float = 0.005
    """ID counts as not worse when the lower 95 % bound of the difference lies above minus this."""
    fewest_seeds: int = 5
    by: str = TOP1
    """The kind of accuracy (`tracking.accuracy.KINDS`) that methods are ranked by."""
    by_task: Mapping[str, str] = field(default_factory=dict)
    """That of each of several tasks, where they are ranked by different ones."""
    has_shifts: bool = True
    """Without shifts ID itself is tested."""
    has_test: bool = True
    """Without an ID test `id/val` stands for ID, as where every domain not held out trains."""

    @property
    def val(self) -> str:
        """`id/val/top1`, or of another kind."""
        return f"id/val/{self.by}"

    @property
    def test(self) -> str:
        """`id/test/top1`, or of another kind."""
        return f"id/test/{self.by}"

    @property
    def ood(self) -> str:
        """`ood/mean/top1`, or of another kind."""
        return f"ood/mean/{self.by}"

    @property
    def id_metric(self) -> str:
        """What stands for accuracy in distribution."""
        return self.test if self.has_test else self.val

    @property
    def endpoint(self) -> str:
        """What is tested."""
        return self.ood if self.has_shifts else self.test

    def suited(self, names: Collection[str]) -> Terms:
        """The same for data of which these metrics are measured.

        What is measured at all is by top-1: data measured by that alone have their shifts and
        test as well, and are not judged by what is lacking.
        """
        has_shifts = bool({self.ood, OOD} & {*names}) or not {self.test, ID} & {*names}
        has_test = bool({self.test, ID} & {*names}) or self.val not in names
        return replace(self, has_shifts=has_shifts, has_test=has_test)

    def on(self, task: str) -> Terms:
        """The same on one of several tasks."""
        return replace(self, by=self.by_task.get(task, self.by), by_task={})

    def over(self, tasks: Collection[str]) -> Terms:
        """The same for a mean over tasks: by the kind that all share, or by each task's own."""
        kinds = {self.on(task).by for task in tasks}
        by = kinds.pop() if len(kinds) == 1 else BENCHMARK
        return replace(self, by=by, by_task={} if by != BENCHMARK else self.by_task)
