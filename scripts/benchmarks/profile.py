"""What a training step's time goes to, by operation."""

import torch

from benchmarks.ours import bare
from benchmarks.peers import INSTALL, PEERS
from benchmarks.setting import PRECISIONS, Setting


def profile(setting: Setting) -> None:
    setting.output.mkdir(parents=True, exist_ok=True)
    on_gpu = setting.device.startswith("cuda")
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    for name, make in {"this project, bare step": bare, "diffusers": PEERS["diffusers"]}.items():
        for precision in PRECISIONS:
            try:
                step = make(setting, precision).step
            except ImportError:
                print(f"{name}: not installed: {INSTALL}")
                continue
            step()
            with torch.profiler.profile(activities=kinds) as profiler:
                for _ in range(setting.steps):
                    step()
            lines = profiler.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=50)
            print(f"\n{name}, {precision}, {setting.steps} steps\n{lines}")
            (setting.output / f"profile-{name.partition(',')[0].replace(' ', '-')}-{precision}.txt").write_text(lines)
