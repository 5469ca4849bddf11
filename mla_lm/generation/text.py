"""From prompts to text, piece by piece: whole characters only, up to a stop string.

Prompts are tokenized, continued together and decoded as they grow.
"""

import codecs
from collections.abc import Iterator, Sequence

import torch

from mla_lm.data.tokenizer import Tokenizer
from mla_lm.generation.decoding import Decoder
from mla_lm.generation.sampling import Sampling
from mla_lm.model import Transformer


class TextStream:
    """Turns ids into text as they come; bytes that are not UTF-8 become U+FFFD.

    What may be the beginning of a character or of a stop string is held back.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""
        self.stopped = False

    def feed(self, ids: Sequence[int]) -> str:
        """The text that is now certain; `stopped` once a stop string, itself left out, is met."""
        if self.stopped:
            return ""
        table = self.tokenizer.token_bytes
        found = b"".join(table[i] for i in ids if i < len(table))  # padding of the vocabulary: none
        self.held += self.decoder.decode(found)
        met = [(at + len(stop), at) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        self.stopped = bool(met)  # what is complete first counts, however many ids come at once
        return self._release(min(met)[1] if met else len(self.held) - self._open())

    def close(self) -> str:
        """What was held back."""
        self.held += "" if self.stopped else self.decoder.decode(b"", final=True)
        return "" if self.stopped else self._release(len(self.held))

    def _release(self, length: int) -> str:
        text, self.held = self.held[:length], self.held[length:]
        return text

    def _open(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        return max(
            (n for stop in self.stops for n in range(len(stop)) if self.held.endswith(stop[:n])),
            default=0,
        )


class Completion:
    """Iterate over it for (row, piece of text); `decoder.counts` tells what it took.

    A prompt that ends in a space is continued without it: tokens carry the space before a word.
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
        self.prompts = [prompt.removesuffix(" ") for prompt in prompts]  # what pieces follow
        encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
        first = torch.ones(len(prompts), tokenizer.vocab_size, dtype=torch.bool)
        for row, (_, mask) in enumerate(encoded):
            if mask is not None:
                first[row] = torch.from_numpy(mask)
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
