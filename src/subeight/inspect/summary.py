"""The x-ray in three to six sentences: what the weights need, what the inputs need, and where to look first."""

from collections import Counter
from statistics import median
from typing import Any

from subeight.inspect.activations import where


def summarize(linears: list[dict[str, Any]], inputs: list[dict[str, Any]], tokens: int) -> list[str]:
    """Plain sentences about a whole model, seen on `tokens` tokens."""
    inside = [linear for linear in linears if linear["block"] is not None and linear["kind"] != "router"]
    said = [_weights(inside), _furthest(inside), _massive(inputs), _systematic(inputs), _choice(inside, inputs)]
    unseen = [row for row in inputs if not row["tokens"]]
    if unseen:
        said.append(
            f"No token reached {len(unseen)} of {len(inputs)} inputs (the first: {unseen[0]['group']}), "
            f"so {tokens:,} tokens of this text say nothing about them."
        )
    return [sentence for sentence in said if sentence]


def _weights(linears: list[dict[str, Any]]) -> str:
    kinds = Counter(linear["tails"] for linear in linears)
    errors = {grid: median(linear["error"][grid] for linear in linears) for grid in ("int4", "int3")}
    return (
        f"Weights: of {len(linears)} linears in blocks {kinds['light']} have light tails (rounding well is enough), "
        f"{kinds['heavy']} heavy ones (rotate, clip), and in {kinds['few']} few values cause much of the error (set "
        f"apart); rounded to nearest the median linear is {errors['int4']:.1%} off at int4:g64 and "
        f"{errors['int3']:.1%} at int3:g64."
    )


def _furthest(linears: list[dict[str, Any]]) -> str:
    top = max(linears, key=lambda linear: linear["error_share"]["int4"]["top1%"])
    far = max(linears, key=lambda linear: linear["range_over_rms"])
    share = max(0.0, top["error_share"]["int4"]["top1%"])
    return (
        f"Setting values apart would help {top['name']} most (without its largest 1 % {share:.0%} of the int4 error is "
        f"gone); furthest stretched is {far['name']}, whose largest weight is {far['range_over_rms']:.0f} x the RMS."
    )


def _massive(inputs: list[dict[str, Any]]) -> str:
    found = sorted((row for row in inputs if row["massive"]["channels"]), key=lambda row: -row["absmax"])
    if not found:
        return "Inputs: no massive activations."
    top = found[0]
    count = round(top["massive"]["tokens"] * top["tokens"])
    others = ", ".join(f"{row['group']} ({row['absmax']:,.0f})" for row in found[1:4])
    return (
        f"Inputs: massive activations in {len(found)} of {len(inputs)}, the largest in {top['group']}: "
        f"{top['absmax']:,.0f} where {top['typical']:.2g} is typical, on {count:,} of {top['tokens']:,} tokens, "
        f"{where(top['massive'])}" + (f"; then {others}." if others else ".")
    )


def _systematic(inputs: list[dict[str, Any]]) -> str:
    found = [row for row in inputs if row["systematic"]]
    if not found:
        return "No channel is extreme on 5 % of the tokens or more."
    top = max(found, key=lambda row: row["systematic"][0]["tokens"] * row["systematic"][0]["absmax"] / row["typical"])
    first = top["systematic"][0]
    return (
        f"Systematic channels (extreme on at least 5 % of the tokens) in {len(found)} of {len(inputs)} inputs; the "
        f"strongest is channel {first['channel']} of {top['group']}, "
        f"{first['absmax'] / top['typical']:,.0f} x the typical value at most and extreme on {first['tokens']:.0%} "
        "of the tokens."
    )


def _choice(linears: list[dict[str, Any]], inputs: list[dict[str, Any]]) -> str:
    light = sum(linear["tails"] == "light" for linear in linears)
    weights = (
        "For weights alone choose a method that rounds well (gptq)"
        if 2 * light >= len(linears)
        else "For weights alone treat the outliers first (rotate, or set them apart), then round"
    )
    massive = any(row["massive"]["channels"] for row in inputs)
    systematic = any(row["systematic"] for row in inputs)
    if massive:
        activations = "for 8-bit inputs take scales per token, since static scales would be spent on massive tokens"
    else:
        activations = "for 8-bit inputs static scales are worth a try, since no token is massive"
    return f"{weights}; {activations}{', and smooth or rotate the systematic channels' * systematic}."
