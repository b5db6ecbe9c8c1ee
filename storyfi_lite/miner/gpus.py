"""Publishes the GPUs' memory, temperature and load as Prometheus series, read through NVML at each scrape.

A machine without NVIDIA's driver has none of these series. This module only reads; placement/ decides what fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class GpuCollector(Collector):
    """Reads every GPU at each scrape. `nvml` is the pynvml module; tests give another."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def collect(self) -> Iterator[Metric]:
        nvml = self._nvml
        used = GaugeMetricFamily("storyfi_gpu_memory_used_bytes", "by all programs", labels=["gpu", "name"])
        total = GaugeMetricFamily("storyfi_gpu_memory_bytes", "in all", labels=["gpu", "name"])
        heat = GaugeMetricFamily("storyfi_gpu_temperature_celsius", "of the chip", labels=["gpu", "name"])
        busy = GaugeMetricFamily("storyfi_gpu_busy_ratio", "0 to 1, last second", labels=["gpu", "name"])
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            labels = [str(index), nvml.nvmlDeviceGetName(handle)]
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            used.add_metric(labels, memory.used)
            total.add_metric(labels, memory.total)
            heat.add_metric(labels, nvml.nvmlDeviceGetTemperature(handle, 0))
            busy.add_metric(labels, nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        yield from (used, total, heat, busy)


def watch_gpus(registry: CollectorRegistry) -> bool:
    """Register the collector. Returns False if there is no NVIDIA driver to ask."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    registry.register(GpuCollector(pynvml))
    return True
