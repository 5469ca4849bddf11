"""From prompts to text, streamed in whole characters up to a stop string."""

import codecs
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mla_lm.data.tokenizer import Tokenizer
from mla_lm.generation.decoding import Decoder
from mla_lm.generation.sampling import Sampling
from mla_lm.model import Transformer


class TextStream:
    """Turns ids into text incrementally; bytes that are not UTF-8 become U+FFFD.

    The start of an incomplete character or of a possible stop string stays pending.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pending = ""
        self.stopped = False

    def feed(self, ids: Sequence[int]) -> str:
        """Text that is final; `stopped` becomes true at a stop string, which is left out."""
        if self.stopped:
            return ""
        table = self.tokenizer.token_bytes
        found = b"".join(table[i] for i in ids if i < len(table))  # else vocabulary padding
        self.pending += self.decoder.decode(found)
        met = [(at + len(stop), at) for stop in self.stops if (at := self.pending.find(stop)) >= 0]
        self.stopped = bool(met)  # the one complete first wins, however many ids are fed at once
        return self._release(min(met)[1] if met else len(self.pending) - self._open())

    def close(self) -> str:
        """The pending text."""
        self.pending += "" if self.stopped else self.decoder.decode(b"", final=True)
        return "" if self.stopped else self._release(len(self.pending))

    def _release(self, length: int) -> str:
        text, self.pending = self.pending[:length], self.pending[length:]
        return text

    def _open(self) -> int:
        """Length of the longest suffix of the pending text that is a prefix of a stop string."""
        return max(
            (n for stop in self.stops for n in range(len(stop)) if self.pending.endswith(stop[:n])),
            default=0,
        )


class Completion:
    """An iterator of (row, piece of text); `decoder.counts` has the work it took.

    A space that ends a prompt is left out of it: the next word's token begins with that space.
    Raises UserError as `Decoder` does.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        stops: Sequence[str] = (),
        n_drafts: int = 0,
        seed: int = 0,
    ) -> None:
        model.n_tokens = tokenizer.vocab_size  # where the model was not loaded with it
        self.prompts = [prompt.removesuffix(" ") for prompt in prompts]  # as continued
        encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
        first = torch.from_numpy(np.array([allowed for _, allowed in encoded]))
        self.streams = [TextStream(tokenizer, stops) for _ in prompts]
        self.decoder = Decoder(
            model,
            [ids for ids, _ in encoded],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=tokenizer.end_of_text,
            n_drafts=n_drafts,
            seed=seed,
            first=first.to(model.embed.weight.device),
        )

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for new in self.decoder:
            for row, ids in new.items():
                yield row, self.streams[row].feed(ids)
                if self.streams[row].stopped:
                    self.decoder.finish(row)
        for row, stream in enumerate(self.streams):
            yield row, stream.close()
