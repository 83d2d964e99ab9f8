"""Write ``grafana.json``, the dashboard to import into Grafana: ``python deploy/monitoring/make_dashboard.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 12, 8

ROWS = {
    "Jobs": [
        ("Jobs by status", "max by (status) (trd_jobs)", "{{status}}", "short"),
        ("Waiting by queue", "max by (queue) (trd_queue_waiting)", "{{queue}}", "short"),
        ("Age of the oldest waiting job", "max by (queue) (trd_queue_oldest_seconds)", "{{queue}}", "s"),
        ("Live workers", "max by (queue) (trd_workers)", "{{queue}}", "short"),
        (
            "Ended attempts an hour",
            "sum by (outcome, error_code) (increase(trd_attempts_total[1h]))",
            "{{outcome}} {{error_code}}",
            "short",
        ),
        (
            "Renewals of leases",
            "sum by (result) (rate(trd_lease_renewals_total[5m]))",
            "{{result}}",
            "ops",
        ),
    ],
    "Training": [
        (
            "Step time, median",
            "histogram_quantile(0.5, sum by (le, instance) (rate(trd_step_seconds_bucket[10m])))",
            "{{instance}}",
            "s",
        ),
        ("Tokens a second", "trd_tokens_per_second", "{{instance}}", "short"),
        ("Gap between sampler and trainer (nats)", "trd_sampler_gap_nats", "{{instance}}", "short"),
        (
            "Storing a checkpoint, p95",
            "histogram_quantile(0.95, sum by (le) (rate(trd_checkpoint_seconds_bucket[1h])))",
            "p95",
            "s",
        ),
        ("Bytes of checkpoints", "sum(rate(trd_checkpoint_bytes_total[10m]))", "stored", "Bps"),
    ],
    "API": [
        (
            "Requests by answer",
            "sum by (status) (rate(trd_requests_total[5m]))",
            "{{status}}",
            "reqps",
        ),
        (
            "Latency by route, p95",
            "histogram_quantile(0.95, sum by (le, route) (rate(trd_request_seconds_bucket[5m])))",
            "{{route}}",
            "s",
        ),
        ("Open event streams", "sum by (instance) (trd_streams)", "{{instance}}", "short"),
    ],
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard; Grafana asks for the Prometheus data source at the import."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, plots in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
                "panels": [],
            }
        )
        top += 1
        for index, (name, expression, legend, unit) in enumerate(plots):
            place = {"x": WIDTH * (index % 2), "y": top + HEIGHT * (index // 2), "w": WIDTH, "h": HEIGHT}
            panels.append(
                {
                    "id": len(panels) + 1,
                    "type": "timeseries",
                    "title": name,
                    "gridPos": place,
                    "datasource": {"type": "prometheus", "uid": "${DS_PROMETHEUS}"},
                    "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
                    "targets": [{"refId": "A", "expr": expression, "legendFormat": legend}],
                }
            )
        top += HEIGHT * -(-len(plots) // 2)
    return {
        "__inputs": [{"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus"}],
        "title": "TRD service",
        "uid": "trd-service",
        "tags": ["trd"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "panels": panels,
    }


if __name__ == "__main__":
    Path(__file__).with_name("grafana.json").write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
