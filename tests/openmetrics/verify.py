"""Reads OpenMetrics text with Prometheus's own parser, and the alert rules as YAML.

Prints, as JSON, the names of all samples, and the expressions of all rules.
"""

import json
import sys

import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

samples = [
    sample.name
    for family in text_string_to_metric_families(sys.stdin.read())
    for sample in family.samples
]
with open(sys.argv[1], encoding="utf-8") as file:
    groups = yaml.safe_load(file)["groups"]
rules = [rule for group in groups for rule in group["rules"]]
for rule in rules:
    assert rule["alert"] and rule["annotations"]["summary"], rule
print(json.dumps({"samples": samples, "expressions": [rule["expr"] for rule in rules]}))
