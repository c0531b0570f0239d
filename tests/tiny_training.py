"""The settings of a training of seconds: the real head, one layer of it, on a dataset with small pictures."""

TINY_TRAINING = (
    "head=small",
    "head.n_emb=32",
    "head.n_layer=1",
    "head.n_head=2",
    "head.cond_dim=32",
    "task.cameras=[top,left,right]",
    "train.batch_size=4",
    "train.learning_rate=1e-2",
    "train.warmup_steps=2",
    "train.ema_max_decay=0.9",
    "train.log_every=2",
    "train.rollout_every=0",
    "train.threads=1",
    "train.device=cpu",
    "train.tracking=disabled",
)
