"""What decides where nobody says otherwise: the policy and the trigger that do best together (loadgen/simulator/README.md; live:
core/merging/README.md, Portfolio)."""

POLICY = "onto"
TRIGGER = "portfolio"
