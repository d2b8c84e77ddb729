"""What lm-evaluation-harness asks of a model, answered by one of ours."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weightsteer import progress
from weightsteer.errors import DataError


class SteeredModel:
    """The harness's model interface (`lm_eval.api.model.LM`) over a `LanguageModel`, steered or not.

    The harness's own class for transformers models pads so that a steering of the answer alone would act on padding,
    and drops a system prompt that the chat template has no role for.
    """

    rank, world_size = 0, 1
    tokenizer_name = ""  # names a cache of requests, which is not used

    def __init__(self, lm: Any, max_new_tokens: int, chat: bool) -> None:
        self.lm, self.max_new_tokens = lm, max_new_tokens
        self.longest = getattr(lm.network.config.get_text_config(), "max_position_embeddings", None)
        begins = lm.tokenizer("a")["input_ids"][:1]
        # A chat template writes the first token itself.
        self.start = begins if begins == [lm.tokenizer.bos_token_id] and not chat else []

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without a generation prompt its last message is the start of the answer."""
        messages = [dict(message) for message in chat_history]
        lm = self.lm
        if messages[0]["role"] == "system":
            lm = lm.with_system(messages.pop(0)["content"])
        start = "" if add_generation_prompt else messages.pop()["content"]
        return lm.chat(messages) + start

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability in nats, is it what the model would say greedily) of (context, continuation) requests."""
        from weightsteer.models.paths import path_log_probs

        pairs = [self._split(*request.args) for request in requests]
        # What differs in the last token alone, such as option letters, is read from one pass: the last is never fed.
        rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for i, (context, continuation) in enumerate(pairs):
            rows.setdefault((tuple(context), tuple(continuation[:-1])), []).append(i)
        unique = list(rows)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for batch in self._batches([len(context) + len(fed) + 1 for context, fed in unique], "harness: scoring"):
            fed = [list(unique[n][1]) for n in batch]
            found = path_log_probs(self.lm, [list(unique[n][0]) for n in batch], [[*path, 0] for path in fed])
            for n, log_p in zip(batch, found, strict=True):
                greedy = log_p.argmax(-1).tolist()
                for i in rows[unique[n]]:
                    path = pairs[i][1]
                    total = log_p[range(len(path)), path].double().sum().item()
                    results[i] = (total, greedy == path)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-probability in nats of whole texts."""
        from weightsteer.models.generate import score_texts

        texts = [request.args[0] for request in requests]
        self._check_length(max(len(self.lm.tokens(text)) for text in texts))
        return [log_p for log_p, _ in score_texts(self.lm, texts, label="harness: texts")]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers to (context, settings) requests, cut before the first stop string."""
        from weightsteer.models.paths import greedy_paths

        asked = [request.args for request in requests]
        if any(settings.get("do_sample") and settings.get("temperature", 1) > 0 for _, settings in asked):
            raise DataError("harness: a task samples its answers. Expected do_sample: false. Change the task file")
        prompts = [self._ids(context) for context, _ in asked]
        limits = [int(settings.get("max_gen_toks", self.max_new_tokens)) for _, settings in asked]
        answers = [""] * len(asked)
        for limit in sorted(set(limits)):
            own = [i for i, own_limit in enumerate(limits) if own_limit == limit]
            for batch in self._batches([len(prompts[i]) + limit for i in own], "harness: generating"):
                paths = greedy_paths(self.lm, [prompts[own[n]] for n in batch], limit)
                for n, path in zip(batch, paths, strict=True):
                    text = self.lm.tokenizer.decode(path, skip_special_tokens=True)
                    answers[own[n]] = _until(text, asked[own[n]][1].get("until") or [])
        return answers

    def _ids(self, text: str) -> list[int]:
        ids = self.lm.tokens(text)
        return ids if ids[:1] == self.start else self.start + ids

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, cut where the harness cuts: spaces at the end of the context go to the continuation."""
        bare = context.rstrip()
        whole = self._ids(context + continuation)
        if not bare:  # there must be something to predict the first token from
            return [self.lm.tokenizer.bos_token_id or self.lm.tokenizer.eos_token_id], whole[len(self.start) :]
        cut = min(len(self._ids(bare)), len(whole) - 1)
        return whole[:cut], whole[cut:]

    def _batches(self, lengths: Sequence[int], label: str) -> Iterator[list[int]]:
        from weightsteer.models.generate import batch_tokens, batches

        self._check_length(max(lengths))
        with progress.task(label, len(lengths)) as advance:
            for batch in batches(lengths, batch_tokens(self.lm) // 2):
                yield batch
                advance(len(batch))

    def _check_length(self, tokens: int) -> None:
        if self.longest is not None and tokens > self.longest:
            raise DataError(
                f"harness: found a question of {tokens} tokens with its examples and answer. Expected at most "
                f"{self.longest}, which the model can see. Lower num_fewshot or max_new_tokens"
            )


def _until(text: str, stops: str | Sequence[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text
