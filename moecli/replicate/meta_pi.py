"""Meta-pi: a network for each speaker, then a gate over them that is trained alone (Hampshire & Waibel, 1992).

The paper has recordings and reports 98.4 % for the blend of six networks and 95.9 % for one network; ours are six
synthetic voices, the sixth a blend of three of the men.  "Five speakers with a network of their own" is a finding
about the gate: which network learned which speaker was decided before, by what each was trained on.
"""

from __future__ import annotations

import numpy as np

from moecli.replicate.bench import Bench, Outcome, Quantity, gate_by, metric
from moecli.tasks.synthesiser import SIXTH

OWN = 0.7  # of a speaker's weight on the network of that speaker


def replicate(bench: Bench) -> Outcome:
    single = bench.train("num_experts=1", "gate=constant")
    speakers = single.info["label_names"]["speaker"]
    modules = [bench.train("num_experts=1", "gate=constant", f"task.only={name}") for name in speakers]
    steps = bench.compose().config["trainer"]["steps"]
    blend = bench.train(
        f"init=[{','.join(str(run.path) for run in modules)}]",
        f"trainer.phases=[{{steps: {steps}, train: ['*.router.*']}}]",
    )
    joint = bench.train()
    own = gate_by(blend, "speaker")  # (speaker, network)
    sixth = speakers.index(SIXTH)
    others = [e for e, name in enumerate(speakers) if name.startswith("man") and e != sixth]
    accuracy, alone = metric(blend, "test/accuracy"), metric(single, "test/accuracy")
    lowest = float(np.delete(own.diagonal(), sixth).min())
    return Outcome(
        [
            Quantity("accuracy, six networks blended by the gate", accuracy, 0.984),
            Quantity("accuracy, one network for all speakers", alone, 0.959),
            Quantity("accuracy, networks and gate trained together", metric(joint, "test/accuracy")),
            Quantity("accuracy, networks on their own speakers, mean", metric(modules, "test/accuracy"), 0.984),
            Quantity("gate on a speaker's own network, least of five", lowest),
            Quantity(f"gate on the other men's networks for {SIXTH}", float(own[sixth, others].sum())),
        ],
        f"five speakers have {OWN:g} of the gate's weight on their own network, {SIXTH} most of it on other men's, and "
        "the blend is at least as accurate as one network",
        lowest > OWN and float(own[sixth, others].sum()) > 0.5 and accuracy >= alone,
    )
