"""Load a diffusers pipeline of the SD 1.x/2.x family, attach an adapter, and report clearly what cannot be loaded."""

from tailorpo_trainer.models import lora_files
from tailorpo_trainer.models.adapter import attach_adapter, export_adapter, save_adapter
from tailorpo_trainer.models.decoder import check_decoder, load_decoder, read_config
from tailorpo_trainer.models.loading import load_policy, pick_device, pick_dtype
from tailorpo_trainer.models.pipeline import check_source, load_pipeline, silence_libraries
from tailorpo_trainer.models.sources import SHIPPED, locate

__all__ = [
    "SHIPPED",
    "attach_adapter",
    "check_decoder",
    "check_source",
    "export_adapter",
    "load_decoder",
    "load_pipeline",
    "load_policy",
    "locate",
    "lora_files",
    "pick_device",
    "pick_dtype",
    "read_config",
    "save_adapter",
    "silence_libraries",
]
