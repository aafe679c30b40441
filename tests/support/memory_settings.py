"""Training settings that tests of the memory estimate vary one by one."""

from rgtrain.config.training_settings import TrainingSettings

SETTINGS = TrainingSettings(
    num_gpus=1,
    param_bytes=4,
    compute_bytes=2,
    lora_rank=0,
    checkpointing=True,
    liger=False,
    reshard=True,
    sync_once=False,
    param_offload=False,
    optimizer_offload=False,
    cpu_offload=False,
    has_critic=False,
    batch_size=32,
    mini_batch_size=32,
    group_size=8,
    prompt_tokens=1,
    response_tokens=1024,
    max_micro_batch_tokens=8192,
    tensor_parallel=1,
    vllm_share=0.5,
    vllm_sleeps=True,
)
