"""The published baselines as pairs of an offload policy and an update rule, with what their servers hold and in which forms they come.

A pair is how the ONTO/JTOM paper seems to have run a baseline (its Table III shows about ten updates each, Multi-MoE almost none); every
policy works with every trigger. A new policy needs no line here: this is the list of the papers compared with, not of what there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Runtime = Literal["merged", "mixed_precision", "expert_buffered", "multi_model"]  # files of `runtimes/`; merged: one merged model


@dataclass(frozen=True, slots=True)
class Pairing:
    """A registered policy and a registered trigger, with their options."""

    policy: str
    trigger: str
    policy_options: Mapping[str, object] = field(default_factory=dict)
    trigger_options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Baseline:
    """`paper` is as published, `strong` the strongest form that is reasonable in this setting."""

    name: str  # as the ONTO/JTOM paper prints it
    source: str
    runtime: Runtime
    paper: Pairing
    strong: Pairing


PAPER_JTOM = {"mode": "paper", "interval_s": 20.0, "adjustment_s": 60.0, "threshold": 0.2}
STRONG_JTOM = {"mode": "product"}


def _baseline(name: str, policy: str, source: str, runtime: Runtime = "merged") -> Baseline:
    """With JTOM's update rule, as Algorithm 2 has it in the paper's form and with the product's guards in the strong one."""
    paper = Pairing(policy, "jtom", {"form": "paper"}, PAPER_JTOM)
    return Baseline(name, source, runtime, paper, Pairing(policy, "jtom", {"form": "strong"}, STRONG_JTOM))


PUBLISHED: tuple[Baseline, ...] = (
    _baseline("MAS", "mas", "Wang, Ye, Lui, INFOCOM 2022"),
    _baseline("LCS", "lcs", "Singh, Kaur, IRJET 5(3), 2018"),
    _baseline("HERT", "heft", "Topcuoglu, Hariri, Wu, TPDS 13(3), 2002 (HEFT)"),
    _baseline("Qual-Greedy", "qual_greedy", "the ONTO/JTOM paper, without a source"),
    _baseline("QoS-Quant", "qos_quant", "Imani, Amirany, El-Ghazawi, ICRC 2024", "mixed_precision"),
    _baseline("MoE-Load", "moe_load", "Huang et al., NeurIPS 2024", "expert_buffered"),
    Baseline(
        "Multi-MoE",
        "Imani et al., ICML 2025",
        "multi_model",
        Pairing("multi_moe", "never", {"form": "paper"}),
        Pairing("multi_moe", "never", {"form": "strong"}),
    ),
    Baseline(
        "Tanbr",
        "Han, Liu, Zhou, Dai, Lui, arXiv 2509.19781, 2025",
        "merged",
        Pairing("home", "tanbr", {}, {"form": "paper"}),
        Pairing("join_shortest_queue", "tanbr", {"form": "strong"}, {"form": "strong"}),
    ),
)
