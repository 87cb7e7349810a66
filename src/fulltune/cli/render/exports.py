"""Show an exported model."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from fulltune.metrics.wording import metric_label
from fulltune.records.export import Export, Quantization
from fulltune.report import display
from fulltune.runtime.terminal import wrapping_table


def exported(result: Export) -> RenderableType:
    """Show where a model was written, and both models side by side."""
    where = f"{result.format} of {result.parent.name} is in {result.artifact}"
    title = where if result.artifact else f"{result.format} of {result.parent.name} was not written"
    table = wrapping_table("", "original", result.format)
    table.add_row("weights", display.size(result.parent.bytes), display.size(result.bytes))
    for name, score in result.scores.items():
        pair = (result.parent_scores[name], score)
        digits = display.decimals(one.value for one in pair)
        cells = [f"{display.number(one.value, digits)} {display.interval(one.low, one.high, digits)}" for one in pair]
        table.add_row(metric_label(name), *cells)
    if result.latency is not None:
        time = result.latency
        table.add_row("ms per row", f"{time.parent_ms:,.1f}", f"{time.artifact_ms:,.1f}")
    return Group(Text(title, style="bold", overflow="fold"), table, *map(Text, _sentences(result)))


def _sentences(result: Export) -> list[str]:
    """Return the verdict and what it rests on."""
    logits = result.logits
    found = [f"Verdict: {result.verdict}" + (f"; forced: {result.forced}" if result.forced else "") + "."]
    if result.rows:
        found.append(f"{result.equal_answers:,} of {result.rows:,} answers are equal.")
    found.append(
        f"Largest difference of a logit: {logits.largest:.2g} ({logits.relative:.2%} of the largest), "
        f"on {logits.rows} {logits.source if logits.source == 'evaluation rows' else 'inputs of random tokens'}."
    )
    if result.quantization is not None:
        found.append(_quantized(result.quantization))
    return [*found, *result.notes]


def _quantized(how: Quantization) -> str:
    """Return how many products are quantized, and which are not."""
    names = ", ".join(layer.layer for layer in how.kept[:3]) + (", …" if len(how.kept) > 3 else "")
    kept = f"; {len(how.kept)} stay in float32 ({names}), chosen on {how.chosen_on}" if how.kept else ""
    return f"{how.products - len(how.kept)} of {how.products} products have 8-bit integers{kept}."
