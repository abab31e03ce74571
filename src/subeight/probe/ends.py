"""What lies outside the blocks, twice, and mixtures of it: embeddings, last norm and head of candidate and baseline."""

from collections.abc import Mapping

from torch import Tensor

from subeight.evals.passes import Computing
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.probe.swaps import Swaps


class Shells:
    """The candidate's shell, the baseline's aligned to it, and shells that take some parameters of the other's."""

    def __init__(self, baseline: Model, candidate: Model, gauge: Gauge, computing: Computing) -> None:
        self.candidate = Shell(candidate, computing.dtype, computing.device)
        self.baseline = Shell(baseline, computing.dtype, computing.device)
        gauge.shell(self.baseline)
        self._models = (baseline, candidate)
        self._computing = computing
        self._mixed: dict[tuple[bool, frozenset[str]], Shell] = {}
        self._names = set(candidate.skeleton.shell_parameters())
        self._tied = candidate.skeleton.tied

    def touched(self, swaps: Swaps) -> frozenset[str]:
        """The parameters outside the blocks that are swapped, by full name."""
        names = {f"{name}.weight" for name in (*swaps.weights, *swaps.given)} | swaps.parameters
        return frozenset(names & self._names)

    def mixed(self, swaps: Swaps, *, restore: bool) -> Shell:
        """The candidate's shell with the swapped parameters restored, or the baseline's with them damaged."""
        base, other = (self.candidate, self.baseline) if restore else (self.baseline, self.candidate)
        touched = self.touched(swaps)
        if not touched:
            return base
        key = (restore, touched)
        given = {f"{name}.weight": value for name, value in swaps.given.items() if f"{name}.weight" in touched}
        if given or key not in self._mixed:
            shell = self._mix(base, other, touched, given, restore=restore)
            if given:
                return shell
            self._mixed[key] = shell
        return self._mixed[key]

    def _mix(
        self, base: Shell, other: Shell, touched: frozenset[str], given: Mapping[str, Tensor], *, restore: bool
    ) -> Shell:
        shell = Shell(self._models[restore], self._computing.dtype, self._computing.device, weights=False)
        for name in self._names:
            source = other if name in touched else base
            shell.replace(name, given.get(name, source.parameter(name)))
        return shell

    def before(self, swaps: Swaps) -> bool:
        """Whether what the first block reads is another: something besides the last norm and the head is swapped."""
        after = self._after()
        return any(name not in after for name in self.touched(swaps))

    def _after(self) -> set[str]:
        model = self._models[1].skeleton
        names = {id(module): name for name, module in model.model.named_modules()}
        head = names.get(id(model.model.get_output_embeddings()), "")
        embedding = f"{names[id(model.model.get_input_embeddings())]}."
        vectors = {n for n in self._names if not n.startswith(embedding) and _is_last_norm(n, model.trunk_name)}
        return vectors | ({f"{head}.weight", f"{head}.bias"} if not self._tied else set())


def _is_last_norm(name: str, trunk: str) -> bool:
    """A norm of the trunk that stands behind its blocks, by its usual names; others are taken to stand before them."""
    return name.removeprefix(f"{trunk}.").split(".")[0] in {"norm", "final_layernorm", "ln_f", "final_layer_norm"}
