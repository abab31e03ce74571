"""Whether a batch will fit into memory, foreseen before anything is trained."""

from subeight.errors import InputError
from subeight.models.model import Model


def require_memory(
    model: Model, *, held: int, trained: int, rows: int, length: int, columns: int, limit: int, item: int
) -> int:
    """Foresees what an update needs beside the base, in bytes, and refuses a batch that does not fit into `limit`.

    `held` bytes are there already, `trained` numbers have a gradient and two moments in float32; a batch has `rows`
    sequences of `length` tokens, of which `columns` are scored; numbers of activations take `item` bytes.

    Raises:
        InputError: it does not fit; it says the largest batch that does.
    """
    from_batch = _activations(model, rows, length, columns, item)
    fixed = 12 * trained + held
    needed = fixed + from_batch
    if needed <= limit:
        return needed
    fits = next(
        (r for r in range(rows - 1, 0, -1) if fixed + _activations(model, r, length, columns, item) <= limit), 0
    )
    way = f"give --batch {fits}, and --accumulate to make up for it" if fits else "give a smaller --length or --rank"
    raise InputError(
        f"A batch of {rows} sequences of up to {length} tokens needs about {needed / 1e9:.2f} GB with the base, and "
        f"{limit / 1e9:.2f} GB can be had; {way}."
    )


def _activations(model: Model, rows: int, length: int, columns: int, item: int) -> int:
    """One state a block, all of one block (its products, and their gradients), and logits with their softmax."""
    text = model.config.get_text_config(decoder=True)
    tokens, count = rows * length, len(model.skeleton.blocks)
    inside = sum(view.info.shape[0] for view in model.structures[0].linears() if view.expert in (None, 0))
    block = tokens * (3 * inside + 8 * model.skeleton.width) * item
    logits = rows * columns * text.vocab_size * (item + 12)
    return count * tokens * model.skeleton.width * item + max(block, logits)
