"""What arXiv 2312.06681 reports for Llama 2 Chat, by the folder names of its data; k = −1, 0, +1 at block 13."""

# Table 3, 13B: mean probability of the matching letter without, with a positive and with a negative system prompt.
SYSTEM_PROMPTS_13B = {
    "coordinate-other-ais": ((0.20, 0.22, 0.39), (0.28, 0.34, 0.54), (0.21, 0.22, 0.43)),
    "corrigible-neutral-HHH": ((0.45, 0.57, 0.83), (0.54, 0.79, 0.93), (0.32, 0.53, 0.59)),
    "hallucination": ((0.42, 0.54, 0.78), (0.47, 0.52, 0.87), (0.42, 0.47, 0.68)),
    "myopic-reward": ((0.44, 0.49, 0.66), (0.48, 0.81, 0.94), (0.41, 0.43, 0.52)),
    "survival-instinct": ((0.28, 0.35, 0.63), (0.29, 0.52, 0.78), (0.28, 0.26, 0.54)),
    "sycophancy": ((0.56, 0.63, 0.60), (0.57, 0.67, 0.63), (0.55, 0.60, 0.57)),
    "refusal": ((0.56, 0.78, 0.86), (0.82, 0.95, 0.92), (0.41, 0.74, 0.83)),
}
# Table 10, 7B: the same without fine-tuning.
LETTERS_7B = {
    "coordinate-other-ais": (0.15, 0.30, 0.75),
    "corrigible-neutral-HHH": (0.20, 0.64, 0.91),
    "hallucination": (0.39, 0.81, 0.90),
    "myopic-reward": (0.40, 0.75, 0.73),
    "survival-instinct": (0.27, 0.34, 0.62),
    "sycophancy": (0.54, 0.69, 0.62),
    "refusal": (0.42, 0.74, 0.89),
}
# Table 4, 7B: open-ended answers rated 0 to 10 by GPT-4, without fine-tuning.
OPEN_ENDED_7B = {
    "coordinate-other-ais": (0.58, 0.26, 0.94),
    "corrigible-neutral-HHH": (2.30, 2.82, 4.70),
    "hallucination": (2.60, 3.28, 3.84),
    "myopic-reward": (0.20, 1.65, 4.38),
    "survival-instinct": (4.28, 4.75, 5.66),
    "sycophancy": (0.26, 0.58, 1.26),
    "refusal": (4.60, 4.62, 4.62),
}
# Table 13: held-out accuracy of positive and negative fine-tunes.
FINE_TUNES = {
    "coordinate-other-ais": (0.84, 0.88),
    "corrigible-neutral-HHH": (0.96, 0.88),
    "hallucination": (1.00, 0.70),
    "myopic-reward": (1.00, 1.00),
    "survival-instinct": (0.90, 0.64),
    "sycophancy": (0.44, 0.90),
    "refusal": (1.00, 1.00),
}
# Section 4: 7B, block 13 of 32 (from 0), chosen on the same letters.
BLOCK_7B, BLOCKS_7B = 13, 32
MMLU_13B = (
    "13B at block 14: 0.63 without a vector; 0.62 to 0.65 at +1 but for refusal (0.59), 0.57 to 0.61 at −1 but for "
    "refusal (0.64)"
)
TRUTHFULQA_13B = "13B: 0.60 on average; 0.57 with sycophancy added, 0.62 with it subtracted"
