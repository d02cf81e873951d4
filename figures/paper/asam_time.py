"""Does Adam catch up when it is given the same time?"""

from __future__ import annotations

from typing import Any

from figures.drawing import bands, style
from figures.study import recipes
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Training
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

METHODS = {"Adam": ("adam", "adam"), "SAM on Adam": ("sam", "adam"), "ASAM on Adam": ("asam", "adam")} | {
    "SGD": ("sgd", "sgd"),
    "SAM on SGD": ("sam", "sgd"),
    "ASAM on SGD": ("asam", "sgd"),
}
BUDGETS = ("epochs", "passes", "seconds")
TWICE = tuple(name for name, (method, _) in METHODS.items() if method in ("sam", "asam"))
"""Two passes in every step: what all others are given as equal passes."""


@register("asam-time", source="ASAM report, section III: an open question there")
class EqualTime(Figure):
    """Test accuracy at equal epochs, equal passes and equal seconds: does Adam catch up with SAM and ASAM?

    Preset quick: digits alone. Equal seconds are measured one run after the other, and thirty runs on photographs would
    take longer than all other figures together.
    """

    title = "Equal epochs, equal passes, equal seconds"

    def _runs(self, study: Study) -> dict[tuple[str, str, int], Training]:
        epochs = study.epochs(study.choose(20, 50, gpu=30))
        # SAM and ASAM spend two passes per epoch: in passes and seconds everyone gets what they spend.
        budgets: dict[str, dict[str, Any]] = {"epochs": {}, "passes": {"budget_passes": 2.0 * epochs}}
        budgets["seconds"] = {"budget_seconds": study.choose(2.5, 9 * 60 * 50, gpu=60)}
        return {
            # For SAM and ASAM the equal passes are the equal epochs: one run.
            (b, name, s): recipes.images(
                study, method, s, base=base, **({} if b == "passes" and name in TWICE else extra)
            )
            for b, extra in budgets.items()
            for name, (method, base) in METHODS.items()
            for s in study.seeds(recipes.SEEDS, 3)
        }

    def plan(self, study: Study) -> list[Training]:
        """Six methods under three budgets; those of equal seconds run alone."""
        return list(self._runs(study).values())

    def collect(self, study: Study) -> FigureData:
        """Last and best test accuracy, and what each run spent."""
        runs = self._runs(study)
        seeds = study.seeds(recipes.SEEDS, 3)
        numbers = FigureData(facts={**recipes.describe(*runs.values()), "seeds": len(seeds)})
        seconds = next(t for (b, _, _), t in runs.items() if b == "seconds").settings["budget_seconds"]
        passes = next(t for (b, _, _), t in runs.items() if b == "passes").settings["budget_passes"]
        numbers.facts.update({"budget in seconds": seconds, "budget in passes": passes})
        for name, values in (("budget", BUDGETS), ("method", METHODS), ("seed", seeds)):
            numbers.axis(name, values)
        histories = {key: study.history(t) for key, t in runs.items()}

        def table(function: Any) -> list:
            return [[[function(histories[b, m, s]) for s in seeds] for m in METHODS] for b in BUDGETS]

        axes = ("budget", "method", "seed")
        numbers.add("test_accuracy", axes, table(lambda h: h["test_accuracy"][-1]), "share of examples")
        numbers.add("epochs", axes, table(lambda h: h["epoch"][-1]))
        work = table(lambda h: h["forward_examples"][-1] + 2 * h["backward_examples"][-1])
        numbers.add("examples", axes, [[[w / 3 for w in row] for row in part] for part in work], "examples passed")
        numbers.add("seconds", axes, table(lambda h: h["seconds"][-1]), "s")
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """One panel per budget."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 3, figsize=(style.PAGE, 2.6), sharex=True, sharey=True, layout="constrained")
        inks = [bands.color(METHODS[m][0]) for m in numbers["method"]]
        heights = [5.6, 4.6, 3.6, 2, 1, 0]
        facts = numbers.facts
        amounts = {"passes": f"{facts['budget in passes']:g}", "seconds": f"{facts['budget in seconds']:g}"}
        amounts["epochs"] = f"{int(numbers['epochs'][0].max())}"
        for axes, budget in zip(panels, numbers["budget"], strict=True):
            bands.points(axes, heights, 100 * numbers.at("test_accuracy", budget=budget), inks)
            axes.set(title=f"equal {budget}: {amounts[budget]}", xlabel="test accuracy at the end (%)")
            axes.grid(True, axis="y")
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(heights, numbers["method"])
        panels[0].set(ylabel="method", ylim=(-0.6, 6.2))
        bands.explain_points(figure, f"the {len(numbers['seed'])} seeds")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """Whether SAM and ASAM stay ahead of their base under each budget."""
        names = list(METHODS)
        note = "The report asks; it gives no answer."

        def ahead(budget: str, method: str, base: str) -> Claim:
            accuracy = 100 * numbers.at("test_accuracy", budget=budget)
            return Claim(
                text=f"{method} stays ahead of {base} at equal {budget}",
                quantity="difference of the last test accuracy",
                published="asked" if budget != "epochs" else "above 0",
                ours=statistics.paired(accuracy[names.index(method)], accuracy[names.index(base)]),
                above=0.0,
                unit="percentage points",
                note=note if budget != "epochs" else "",
            )

        pairs = (("SAM on Adam", "Adam"), ("ASAM on Adam", "Adam"), ("SAM on SGD", "SGD"), ("ASAM on SGD", "SGD"))
        return [ahead(b, *pair) for b in BUDGETS for pair in pairs]
