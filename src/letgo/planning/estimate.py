"""The stages of a run, followed on a model without values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from letgo.benchmarks import benchmark_of
from letgo.benchmarks.engine.base import Benchmark
from letgo.benchmarks.engine.requests import Work, most_tokens
from letgo.core.catalog import settings_of
from letgo.data import pad_rows
from letgo.data.encode import Encoded
from letgo.models.load import DTYPES, best_device, load_tokenizer, model_config
from letgo.models.running import key_value_bytes, most_generation_budget, scoring_budget
from letgo.objectives import Objective
from letgo.objectives.references import reference_quantities
from letgo.objectives.rmu_lat import adversary_loss, attacked_block
from letgo.optim.engine.vocabulary import vocabulary_parameters
from letgo.planning.machine import Speed, layers_speed, product_speed
from letgo.planning.optimizers import OptimizerCost, optimizer_cost
from letgo.planning.report import Phase
from letgo.planning.tracing import Traced, empty_model, faked, faking, trace_forward, trace_training
from letgo.training.beforehand import check_attacks_of, checkpoints_kept, export_bytes
from letgo.training.config import UnlearnConfig, resolved_settings
from letgo.training.looks import look_limit, most_looks
from letgo.training.prepare import TOKENS_AT_ONCE, drawn_retain_rows, prepare_data, prepare_model
from letgo.training.run_plan import objective_of, optimizer_settings, planned_steps

FRAGMENTED = 1.35
"""Resident bytes for each byte alive among activations and gradients on a CPU: what is freed in small pieces between
others is not given back. Calibrated, see tests/planning."""
FRAGMENTED_ADAPTERS = 2.0
"""The same where adapters are trained, on a plain and on a quantized base: small gradients and states lie between large
activations, and most of what is freed stays."""
FRAGMENTED_QUANTIZED = 2.6
FRAGMENTED_TOGETHER = 1.85
"""The same of one of several processes, where more threads allocate. Calibrated on two gloo processes, see
tests/planning/measured_ranks.py."""
RESERVE = 0.05
"""Of an accelerator's memory: for its driver, its libraries and NCCL, which are not followed."""


@dataclass(frozen=True)
class RunWork:
    """What lies between the two evaluations of a run.

    Attributes:
        flops: by stage.
        batch: the shape of a micro-batch, (rows, length).
        checkpoints: bytes on disk of those that are there at once.
        references: bytes in letgo's cache.
        looks: at the model during training, if any.
    """

    phases: tuple[Phase, ...]
    flops: Mapping[str, float]
    steps: int
    batch: torch.Size
    checkpoints: int = 0
    references: int = 0
    looks: PlannedLooks | None = None


@dataclass(frozen=True)
class PlannedLooks:
    """The looks of a run that does not stop before its last step, and what each of them runs through the model."""

    count: int
    tokens: int


class Planned:
    """A run's data and objective (None for a one-shot method), its model without values, and what its stages take.

    Args:
        args: the run's config.
        process: bytes of the process before anything is loaded.
        device: where the model will lie; by default what this machine has.
        ranks: devices, a process each; every one holds whole weights.

    Attributes:
        readers: processes among which the rows of a step are split.
        held: bytes of the weights (and adapters) on a device, alive in every stage.
        trained_bytes, trained_here: bytes of the trained parameters, and of the part of them that a device holds.
        largest: bytes of the largest trained parameter on a device.
        passes: the first-order and the zeroth-order evaluation of a step, where the optimizer makes them.
    """

    def __init__(
        self, args: UnlearnConfig, process: int, *, device: torch.device | None = None, ranks: int = 1
    ) -> None:
        self.args, self.process, self.ranks = args, process, ranks
        self.readers = ranks if args.share == "data" else 1
        self.device = device or (torch.device("cpu") if args.use_cpu else best_device())
        self.dtype = DTYPES[args.dtype]
        self.benchmark: Benchmark = benchmark_of(resolved_settings(args))
        check_attacks_of(args, self.benchmark)
        self.tokenizer = load_tokenizer(args.model)
        self.config = model_config(args.model)
        self.objective = objective_of(args)
        model = empty_model(self.config, self.dtype)
        self.linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        self.parameters = sum(p.numel() for p in model.parameters())
        self.weights = self._weight_bytes(model)
        self.full = self.parameters * self.dtype.itemsize
        # Evaluations on a CPU run with a packed copy of the linear layers' weights; quantized layers are not packed.
        packs = self.device.type == "cpu" and self.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        self.packed_after = sum(m.weight.nbytes for m in self.linear) if packs else 0
        self.packed = self.packed_after
        if args.base_quantization is not None and packs:
            self.packed = sum(m.weight.nbytes for m in self.linear if m is model.get_output_embeddings())
        text = self.config.get_text_config()
        self.context = int(getattr(text, "max_position_embeddings", None) or 2048)
        model, notes = prepare_model(model, args, self.objective, check=False)
        self.model = faked(model)
        # Again: what the objective keeps of the output layer must be of these parameters.
        if self.objective:
            self.objective.prepare(self.model, check=False)
        self.merged = sum(m.weight.nbytes for name, m in self.model.named_modules() if name.endswith("base_layer"))
        self.dataset, more = prepare_data(self.benchmark, self.tokenizer, args, self.objective, context=self.context)
        self.notes = [*notes, *more]
        self.passes: tuple[Traced | None, Traced | None] = None, None
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained_bytes = sum(p.nbytes for p in self.trained)
        self.adapters = self.trained_bytes if args.lora_rank else 0
        self.trained_here = self.trained_bytes
        self.largest = max(p.nbytes for p in self.trained)
        self.held = {"weights": self.weights, "adapters": self.adapters}

    def _weight_bytes(self, model: Any) -> int:
        """Bytes of the weights as they will lie in memory."""
        total, kind = sum(p.nbytes for p in model.parameters()), self.args.base_quantization
        output = model.get_output_embeddings()
        for module in self.linear:
            if kind is not None and module is not output:
                rows, count = module.weight.shape[0], module.weight.numel()
                # 4 bits and a float32 scale for 64 of them; 8 bits and a scale a row.
                packed = count + 4 * rows if kind == "int8" else count // 2 + 4 * -(-count // 64)
                total += packed - module.weight.nbytes
        return total

    def use(self, ranks: int) -> None:
        """As many devices; what was traced stays."""
        self.ranks = ranks

    def needed(self, peak: int) -> int:
        """Bytes of a device at this peak: on a CPU the process itself lies there too."""
        return peak + (self.process if self.device.type == "cpu" else 0)

    def usable(self, memory: int | None) -> int | None:
        """Bytes of a device's memory that a run can use."""
        reserve = RESERVE if self.device.type != "cpu" else 0.0
        return None if memory is None else int((1 - reserve) * memory)

    def note_idle_devices(self) -> None:
        """Note where some devices have no work of their own."""
        work, unit = len(self.dataset), "rows in the forget set"
        if self.ranks == 1:
            return
        if self.objective is None:
            method = self.args.objective
            self.notes.append(f"every device does the whole of {method}: it takes no steps that devices could share")
            return
        if self.args.share == "directions":
            if self.cost.backwards:
                return
            work, unit = round(self.cost.forwards), "evaluations in a step"
        idle = self.ranks - work
        if idle > 0:
            self.notes.append(f"{self.ranks} devices, but {work} {unit}: {idle} have nothing of their own to do")

    def looks(self, steps: int) -> PlannedLooks | None:
        """The looks that the config asks for; what they are is noted."""
        count = most_looks(self.args, steps)
        if not count:
            return None
        stop = ", fewer where the target is reached before" if self.args.stop else ""
        self.notes.append(f"looks during training: {count}{stop}, {self.looked.tokens:,} tokens each")
        return PlannedLooks(count, self.looked.tokens)

    def scoring(self, scoring: _Scoring) -> dict[str, int]:
        """Bytes that are alive while a model is scored."""
        return {
            **self.held,
            "packed copy of the linear layers": self.packed,
            **self.activations(scoring.traced),
            "keys and values of generated answers": scoring.cache,
            **self.gathered(scoring.traced),
        }

    def evaluating(self) -> list[Phase]:
        evaluate = self.scoring(self.scored)
        phases = [Phase("evaluate", evaluate)]
        if self.adapters and not self.args.base_quantization:
            # The file that the base was read from stays mapped while merged layers are new.
            phases.append(Phase("evaluate after", {**evaluate, "merged layers": self.merged}))
        elif self.args.base_quantization:
            # The trained model is still in memory when the merged one has been read.
            after = {**evaluate, "merged model": self.full, "packed copy of the linear layers": self.packed_after}
            phases.append(Phase("evaluate after", after))
        return phases

    def activations(self, traced: Traced, at_once: int = 1) -> dict[str, int]:
        """Of a pass without gradients."""
        return {"activations": int(self.fragmented() * (traced.peak - traced.gathered) * at_once)}

    def gathered(self, traced: Traced) -> dict[str, int]:
        """Of a model in shards: what a pass gathers of it, and gradients on their way to their shards."""
        return {"gathered layers": int(self.fragmented() * traced.gathered)} if traced.gathered else {}

    @functools.cached_property
    def cost(self) -> OptimizerCost:
        words = vocabulary_parameters(self.model)
        no_matrices = sum(p.nbytes for p in self.trained if p.dim() != 2 or id(p) in words) / self.trained_bytes
        settings = optimizer_settings(self.args)
        return optimizer_cost(self.args.optimizer, settings, self.trained[0].dtype, no_matrices=no_matrices)

    def training(self, objective: Objective) -> RunWork:
        """What a trainer does with an objective and an optimizer."""
        args, cost = self.args, self.cost
        steps, epochs = planned_steps(args, len(self.dataset), self.readers)
        batch = self.batch(objective)
        self.model.train()
        if args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        inner = self.inner_steps(objective, batch)
        loss = functools.partial(objective, self.model, batch)
        first = self.trace_training(loss, args.gradient_accumulation_steps) if cost.backwards else None
        zeroth = self.trace_forward("evaluation", loss) if cost.forwards else None
        self.passes = first, zeroth
        phases, flops = self.reference(objective, epochs)
        state = int(cost.state * self.trained_here)
        evaluations = steps * args.gradient_accumulation_steps
        if inner is not None:
            count, traced = inner
            activations = {"activations": int(self.fragmented() * traced.peak)}
            phases.append(Phase("attack on hidden states", {**self.held, "optimizer state": state, **activations}))
            flops["attack on hidden states"] = evaluations * count * traced.flops
        if looks := self.looks(steps):
            flops["looks"] = looks.count * looks.tokens * self.scored.flops
            phases.append(Phase("look", {**self.scoring(self.looked), "optimizer state": state}))
        flops["train"] = 0.0
        if first is not None:
            phases += self.step_phases(first, cost)
            flops["train"] += evaluations * first.flops * cost.backwards
        if zeroth is not None:
            # Perturbed copies are made a piece of a tensor at a time.
            piece = int(max(1.0, cost.largest) * min(self.largest, 4 * 2**22))
            passes = {
                **self.held,
                "optimizer state": state,
                **self.activations(zeroth, cost.at_once),
                "perturbations": piece + int(cost.held * self.trained_here),
                **self.gathered(zeroth),
            }
            phases.append(Phase("train, zeroth", passes))
            flops["train"] += evaluations * zeroth.flops * cost.forwards
        return RunWork(
            tuple(self.on_device(phase) for phase in phases),
            flops,
            steps,
            next(iter(batch.values()))["input_ids"].shape,
            checkpoints=self.checkpoints(steps, epochs, int(cost.state * self.trained_bytes)),
            references=self.stored(objective, epochs),
            looks=looks,
        )

    def inner_steps(self, objective: Objective, batch: dict[str, dict[str, Tensor]]) -> tuple[int, Traced] | None:
        """How many passes the method's own adversary takes in a step, and one of them; `batch` gets what it leaves."""
        if objective.record.adversary is None:
            return None
        settings = {**settings_of(objective.forget.function), **objective.forget.settings}
        part, count = batch["forget"], int(settings["inner_steps"])
        if not count:
            return None
        block = attacked_block(self.model, settings["layer"], settings["attacked_layer"])
        tokens, width = int(part["attention_mask"].sum()), self.config.get_text_config().hidden_size
        with faking():
            part["latent"] = torch.empty(tokens, width, dtype=torch.promote_types(self.dtype, torch.float32))
            delta = part["latent"].clone().requires_grad_()
        # The weights' gradients are counted too, though they are not taken: an upper bound.
        return count, trace_training(self.model, lambda: adversary_loss(self.model, part, delta, block))

    def step_phases(
        self,
        passes: Traced,
        cost: OptimizerCost,
        held: Mapping[str, int] | None = None,
        names: tuple[str, str] = ("train", "step"),
    ) -> tuple[Phase, Phase]:
        """A first-order step: its forward and backward passes, then the optimizer's own. `held` is alive in both."""
        state = int(cost.state * self.trained_here)
        common = {**self.held, **(held or {}), "optimizer state": state}
        fragmented, step = self.fragmented(), cost.step * self.trained_here + cost.largest * self.largest
        first = {
            **common,
            "gradients": int(fragmented * passes.gradients),
            "activations": int(fragmented * max(0, passes.peak - passes.gradients - passes.gathered)),
            "copies that the optimizer holds": int(cost.held * self.trained_here),
            **self.gathered(passes),
        }
        within = int(max(0, fragmented * step - passes.gradients))
        second = {**common, "gradients": passes.gradients, "within the optimizer's step": within}
        return Phase(names[0], first), Phase(names[1], second)

    def on_device(self, phase: Phase) -> Phase:
        """A phase of the step, with what the strategy adds."""
        first, _ = self.passes
        # DDP does not wrap replicas without gradients.
        if self.ranks == 1 or not first or not phase.name.startswith(("train", "step")):
            return phase
        return Phase(phase.name, {**phase.items, "buffers of DDP": self.trained_bytes})

    def fragmented(self) -> float:
        """Resident bytes for each byte alive."""
        if self.device.type != "cpu":
            return 1.0
        alone = FRAGMENTED
        if self.adapters:
            alone = FRAGMENTED_QUANTIZED if self.args.base_quantization else FRAGMENTED_ADAPTERS
        return max(alone, FRAGMENTED_TOGETHER) if self.ranks > 1 else alone

    def part(self, name: str, size: int) -> dict[str, Tensor]:
        """The micro-batch that takes most: the longest row among rows of the usual length."""
        rows: list[Encoded] = sorted(getattr(self.dataset, name), key=len)
        middle = len(rows) // 2
        usual = [rows[(middle + offset) % len(rows)] for offset in range(min(size, len(rows)) - 1)]
        part = pad_rows([rows[-1], *usual], self.tokenizer.pad_token_id)
        part["index"] = torch.arange(len(part["labels"]))
        return part

    def batch(self, objective: Objective) -> dict[str, dict[str, Tensor]]:
        """A micro-batch with the shapes of what the objective needs of the reference."""
        size = min(self.args.per_device_train_batch_size, -(-len(self.dataset) // self.readers))
        batch = {name: self.part(name, size) for name in objective.parts}
        width = self.config.get_text_config().hidden_size
        for name, quantities in objective.reference.items():
            part = batch[name]
            labels = int((part["labels"][:, 1:] >= 0).sum())
            shapes = {
                "logps": (part["labels"].shape[0],),
                "hidden": (labels, width),
                "layer_hidden": (int(part["attention_mask"].sum()), width),
            }
            with faking():
                for quantity in quantities:
                    dtype = torch.float32 if quantity == "logps" else self.dtype
                    part[f"reference_{quantity}"] = torch.empty(shapes[quantity], dtype=dtype)
        with faking():
            taken = {n: {q: [batch[n][f"reference_{q}"]] for q in names} for n, names in objective.reference.items()}
            objective.fit(self.model, taken)
        return batch

    def trace_training(self, loss: Callable[[], Tensor], windows: int) -> Traced:
        return trace_training(self.model, loss, windows=windows)

    def trace_forward(self, name: str, function: Callable[[], Any]) -> Traced:
        return trace_forward(self.model, function)

    def reference(self, objective: Objective, epochs: int) -> tuple[list[Phase], dict[str, float]]:
        """The stage that computes what the objective needs of the reference, if anything, and its operations."""
        phases, flops = [], 0.0
        for name, quantities in objective.reference.items():
            rows: list[Encoded] = getattr(self.dataset, name)
            longest = max(rows, key=len)
            part = pad_rows([longest] * max(1, min(len(rows), TOKENS_AT_ONCE // len(longest))), 0)
            take = functools.partial(reference_quantities, self.model, part, quantities, layer=objective.layer)
            traced = self.trace_forward(f"reference {name}", take)
            phases.append(Phase("reference", {**self.held, **self.activations(traced), **self.gathered(traced)}))
            tokens = sum(len(rows[index]) for index in self._reference_rows(name, epochs))
            flops += tokens * traced.flops / part["input_ids"].numel()
        if not phases:
            return [], {}
        return [max(phases, key=lambda phase: phase.total)], {"reference": flops}

    def _reference_rows(self, name: str, epochs: int) -> Sequence[int]:
        """The indices of a part's rows whose reference quantities are taken."""
        return drawn_retain_rows(self.dataset, epochs) if name == "retain" else range(len(getattr(self.dataset, name)))

    @functools.cached_property
    def scored(self) -> _Scoring:
        """What an evaluation runs through the model, from what the benchmark will ask of it."""
        work = self.asked_of(self.benchmark, self.args.eval_limit)
        longest = max([len(q.prefix) + max(map(len, q.continuations)) for q in work.queries], default=16)
        rows = max(1, scoring_budget(self.device) // max(1, longest))
        ids = torch.zeros((rows, longest), dtype=torch.long)
        self.model.eval()
        score = functools.partial(self.model, input_ids=ids, use_cache=False, logits_to_keep=1)
        traced = self.trace_forward("scoring", lambda: score().logits)
        return _Scoring(traced, self.cache(work), self.tokens(work), traced.flops / ids.numel())

    def tokens(self, work: Work) -> int:
        """The most that a work runs through the model, padding too."""
        return most_tokens(work, scoring_budget(self.device), most_generation_budget(self.device))

    @functools.cached_property
    def looked(self) -> _Scoring:
        """The same of a look during training."""
        work = self.asked_of(self.benchmark.few(self.args.eval_limit), look_limit(self.args))
        return replace(self.scored, cache=self.cache(work), tokens=self.tokens(work))

    def cache(self, work: Work) -> int:
        """Bytes of the keys and values of generated answers."""
        most = 2 << 30 if self.device.type == "cpu" else 16 << 30
        answers = sum(len(ask.prompt) + ask.max_new_tokens * ask.samples for ask in work.asks)
        return min(answers * key_value_bytes(self.config, self.dtype), most)

    def asked_of(self, benchmark: Benchmark, limit: int | None) -> Work:
        """What a benchmark will ask of the run's model."""
        return benchmark.work(self.model, self.tokenizer, limit=limit, template=self.args.template)  # type: ignore[arg-type]

    def evaluation_flops(self) -> float:
        """Of all evaluations; what they are is noted."""
        references = len(self.benchmark.references)
        # Every attack is made on the original and on the references too.
        evaluations = 2 + references + len(self.args.attacks_made) * (2 + references)
        self.notes.append(
            f"evaluations: {evaluations} (before, after, references, attacks), {self.scored.tokens:,} tokens each; "
            "what attacks do beside being measured is not in the time"
        )
        return evaluations * self.scored.tokens * self.scored.flops

    def speed(self, flops: float | None, measure: bool, shape: torch.Size) -> Speed | None:
        """None for several devices, and for a kind that this machine does not have.

        Args: as in `plan`, and the shape of a micro-batch, (rows, length).
        """
        missing = self.device.type == "cuda" and not torch.cuda.is_available()
        if self.ranks > 1 or (flops is None and missing):
            return None
        if flops is not None:
            return Speed(flops, "given")
        if measure:
            return layers_speed(self.config, shape[0], shape[1], self.dtype, self.device)
        text = self.config.get_text_config()
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        return product_speed(text.hidden_size, inner, shape.numel(), self.dtype, self.device)

    def disk(self, work: RunWork) -> dict[str, int]:
        sizes = {"adapter" if self.adapters else "model": self.adapters or self.weights}
        if self.args.save_merged:
            sizes["merged model"] = self.full
        sizes |= export_bytes(self.args)
        sizes["checkpoints, while running"] = work.checkpoints
        if self.args.keep == "best":
            # One that is being written, the best so far, and the best at the last checkpoint.
            sizes["best weights, while running"] = 3 * self.trained_bytes
        return sizes | {"peak": sum(sizes.values()), "references, in letgo's cache": work.references}

    def checkpoints(self, steps: int, epochs: int, state: int) -> int:
        """Bytes of the checkpoints that are there at once."""
        return checkpoints_kept(self.args, steps, epochs) * ((self.adapters or self.weights) + state)

    def stored(self, objective: Objective, epochs: int) -> int:
        """Bytes of the reference quantities in letgo's cache."""
        width, total = self.config.get_text_config().hidden_size, 0
        for name, quantities in objective.reference.items():
            rows: list[Encoded] = getattr(self.dataset, name)
            for index in self._reference_rows(name, epochs):
                labels = sum(label >= 0 for label in rows[index].labels[1:])
                tokens = {"hidden": labels, "layer_hidden": len(rows[index])}
                total += sum(
                    4 if quantity == "logps" else tokens[quantity] * width * self.dtype.itemsize
                    for quantity in quantities
                )
        return total


@dataclass(frozen=True)
class _Scoring:
    traced: Traced
    cache: int
    tokens: int
    flops: float
    """Of one token's forward pass."""
