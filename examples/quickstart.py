"""From topics to a safer adapter in ten lines. Needs a running `ptalign-server serve`."""

from ptalign_client import Client

MODEL, POLICY = "smollm2-135m-instruct", "tone-en"
with Client() as client:
    asks = client.generate_instructions(model=MODEL, policy=POLICY, count=40).result()
    pairs = client.synthesize_pairs(model=MODEL, instruction_set=asks).result()
    adapter = client.align(model=MODEL, pair_set=pairs).result()
    report = client.evaluate(target=adapter, samples=60).result()
    print(report.verdict, report.baseline["harm_rate"], report.aligned["harm_rate"])
    client.download(report, "report.html", "report.html")
