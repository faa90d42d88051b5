"""Defines the plots over the steps of a run, with captions. docs/instruments.md defines every measure."""

from __future__ import annotations

from preceptor_client.train.report.plots import Band, Curve, Plot, Topic

LEARNING = Topic(
    title="Learning",
    intro="Does the student come closer to the teacher, and does it show on what it never trained on?",
    plots=(
        Plot(
            title="Loss",
            caption="What is minimised, in nats per position, measured before each update. Healthy: falls fast, then "
            "slowly; rollouts differ from step to step, so it is noisy. A rise that lasts means trouble.",
            curves=(Curve(key="loss", name="loss"),),
            scale="zero",
        ),
        Plot(
            title="Reward",
            caption="Over the episodes of a step: the mean, and how far they lie apart. Healthy: the mean rises. A "
            "standard deviation of 0 says that all episodes got the same, so that an advantage has nothing to tell.",
            curves=(Curve(key="mean_reward", name="mean"), Curve(key="reward_std", name="standard deviation")),
        ),
        Plot(
            title="Held-out loss",
            caption="The same loss on held-out examples, each rolled out once by the same draws; nats per position. "
            "Healthy: falls with the loss. Rising while the loss falls: the run has seen its prompts too often.",
            curves=(Curve(key="loss", name="held-out loss"),),
            kind="heldout",
            scale="zero",
        ),
        Plot(
            title="Held-out reward",
            caption="Mean reward of the held-out examples, each rolled out once by the same draws. Healthy: rises with "
            "the reward of the steps.",
            curves=(Curve(key="mean_reward", name="held-out reward"),),
            kind="heldout",
        ),
        Plot(
            title="Held-out accuracy",
            caption="Share of held-out examples that are answered right, greedily. Healthy: rises toward what the "
            "teacher's prompts, or the teacher, reach.",
            curves=(Curve(key="accuracy", name="student"),),
            kind="heldout",
            scale="share",
            reference="heldout_teacher",
            reference_name="untrained, with the teacher's prompts",
        ),
        Plot(
            title="Gradient norm",
            caption="Length of the gradient before it is clipped. Healthy: steady or falling. Spikes of ten times the "
            "usual come before a collapse: lower optimizer.learning_rate.",
            curves=(Curve(key="gradient_norm", name="gradient norm"),),
            scale="zero",
        ),
    ),
)

SUPPORT = Topic(
    title="Support",
    intro="Does the loss see where both models put their probability?",
    plots=(
        Plot(
            title="Coverage",
            caption="Probability that each side gives to the tokens compared, the share of the student's tokens "
            "outside them, and how much of the teacher's top K is in the student's. Healthy: both masses near 100% and "
            "the share outside near 0; a student's mass that falls escapes to where the loss is blind.",
            curves=(
                Curve(key="teacher_mass", name="teacher's mass"),
                Curve(key="student_mass", name="student's mass"),
                Curve(key="outside_share", name="sampled outside"),
                Curve(key="overlap", name="overlap"),
            ),
            scale="share",
        ),
        Plot(
            title="Entropy",
            caption="How undecided each model is, nats per position. Healthy: the student's comes to the teacher's and "
            "stays there. Falling to 0 is collapse; rising without end is drift.",
            curves=(
                Curve(key="student_entropy", name="student"),
                Curve(key="teacher_entropy", name="teacher"),
            ),
            scale="zero",
        ),
    ),
)

SIGNALS = Topic(
    title="Signals",
    intro="Failure 1: at most tokens the teacher only disapproves, and a few approved ones steer the run.",
    plots=(
        Plot(
            title="Signal of the student's tokens",
            caption="log q − log p of what the student wrote, teacher over student, in nats: the median, half of all "
            "tokens, and nine in ten. Healthy: centred a little below 0, the lower edge rising toward it.",
            curves=(Curve(key="gap_q50", name="median"), Curve(key="gap", name="mean")),
            bands=(
                Band(low="gap_q05", high="gap_q95", name="5% to 95%", colour="--band-wide"),
                Band(low="gap_q25", high="gap_q75", name="25% to 75%", colour="--band-narrow"),
            ),
        ),
        Plot(
            title="Positive signals",
            caption="Share of tokens that the teacher finds likelier than the student does, and their share of all "
            "signal by size. Healthy: neither near 0 nor near 100%. A small share with a large weight is the "
            "imbalance.",
            curves=(
                Curve(key="positive_share", name="share of tokens"),
                Curve(key="positive_weight", name="share of weight"),
            ),
            scale="share",
        ),
    ),
)

LENGTH = Topic(
    title="Long responses",
    intro="Failure 2: on prefixes that it would never write, and on loops, the teacher's advice gets unreliable.",
    plots=(
        Plot(
            title="Repetition and truncation",
            caption="Share of tokens that complete four in a row seen before in the response, the teacher's "
            "probability of them, and the share of responses cut at the limit. Healthy: repeats and cuts low and flat. "
            "All three rising together: the teacher rewards loops.",
            curves=(
                Curve(key="repeated_share", name="repeated tokens"),
                Curve(key="repeated_teacher_probability", name="teacher on those"),
                Curve(key="truncated_share", name="cut responses"),
            ),
            scale="share",
        ),
        Plot(
            title="Response length",
            caption="Mean tokens per response, the end token included. Healthy: settles. Growing to "
            "rollout.max_new_tokens, the student has forgotten how to end; falling to a few, it has given up.",
            curves=(Curve(key="mean_response_length", name="tokens"),),
            scale="zero",
        ),
    ),
)

TOKENS = Topic(
    title="Special tokens",
    intro="Failure 3: the two tokenizers write the same thing differently, and the student is blamed for it.",
    plots=(
        Plot(
            title="Positions with a score",
            caption="Share of the positions asked for that the loss can use, and the teacher's probability that has no "
            "place in the student's vocabulary. Healthy: near 100%, and near 0.",
            curves=(
                Curve(key="scored_share", name="positions with a score"),
                Curve(key="unmapped_mass", name="unmapped probability"),
            ),
            scale="share",
        ),
        Plot(
            title="Confident disagreements",
            caption="Tokens that the student was sure of (log-probability above −0.1) and the teacher rules out (below "
            "−10). Healthy: none, or a handful. The same few tokens each step: they are written differently.",
            curves=(Curve(key="confident_disagreements", name="tokens per step"),),
            scale="zero",
        ),
        Plot(
            title="Agreement on the end",
            caption="Where the student ended its response: how often ending is the teacher's first choice too. "
            "Healthy: high, and rising. At 0 from the start: end tokens are not paired.",
            curves=(Curve(key="end_agreement", name="agreement"),),
            scale="share",
        ),
    ),
)

TIME = Topic(
    title="Time",
    intro="Where do the seconds go?",
    plots=(
        Plot(
            title="Seconds per step",
            caption="The student writing, waiting for the teacher's last scores, and the update. Healthy: hardly any "
            "waiting; much of it asks for a faster teacher, or more of them.",
            curves=(
                Curve(key="rollout_seconds", name="rollout"),
                Curve(key="score_wait_seconds", name="waiting for scores"),
                Curve(key="train_seconds", name="update"),
            ),
            scale="zero",
            is_stacked=True,
        ),
    ),
)

TOPICS = (LEARNING, SUPPORT, SIGNALS, LENGTH, TOKENS, TIME)
