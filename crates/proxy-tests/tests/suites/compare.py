"""Compares what test suites said on a server itself and through the proxy: `compare.py RESULTS EXPECTED SUITE...`.

RESULTS holds SUITE.MODE.xml (JUnit) or SUITE.MODE.out (pg_regress), MODE being direct, transaction or session. EXPECTED
lists differences: `[sometimes] SUITE MODE TEST OUTCOME>OUTCOME` below the comment that is their reason. A difference that
is not listed, and a listed one that is gone, are failures; one that depends on timing is marked `sometimes`.
"""

import collections
import pathlib
import re
import sys
import xml.etree.ElementTree

WORST = ["failed", "passed", "skipped"]
REGRESS = re.compile(r"^(?:test)?\s+(?:\S+:\s)?(\S+)\s+\.\.\. (ok|FAILED|failed)")


def junit(path):
    """Outcomes by test; a test with parts has the worst of theirs."""
    outcomes = {}
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}".removeprefix("tests.").replace(" ", "_")
        outcome = "passed"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        elif case.find("skipped") is not None:
            outcome = "skipped"
        outcomes[name] = min(outcome, outcomes.get(name, outcome), key=WORST.index)
    return outcomes


def regress(path):
    found = filter(None, map(REGRESS.match, path.read_text().splitlines()))
    return {match[1]: "passed" if match[2] == "ok" else "failed" for match in found}


def outcomes(results, suite, mode):
    if (path := results / f"{suite}.{mode}.xml").exists():
        return junit(path)
    if (path := results / f"{suite}.{mode}.out").exists():
        return regress(path)
    return None


def listed(path, suites):
    expected, reason = {}, False
    for line in path.read_text().splitlines():
        words = line.split()
        if not words or line.startswith("#"):
            reason = bool(words)
            continue
        if not reason:
            sys.exit(f"{path}: no reason above `{line}`")
        sometimes = words[0] == "sometimes"
        suite, mode, test, outcome = words[sometimes:]
        if suite in suites:
            expected[suite, mode, test] = (outcome, sometimes)
    return expected


def main():
    results, expected = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    suites = sys.argv[3:]
    expected, differences = listed(expected, suites), {}
    print(f"\n{'suite':10} {'mode':12} {'passed':>7} {'failed':>7} {'skipped':>8} {'differ':>7}")
    for suite in suites:
        direct = outcomes(results, suite, "direct")
        if not direct:
            sys.exit(f"{suite} has no results")
        for mode in ["direct", "transaction", "session"]:
            through = outcomes(results, suite, mode)
            if through is None:
                continue
            if not through:
                sys.exit(f"{suite} has no results: {mode}")
            differ = {
                (suite, mode, test): f"{direct.get(test, 'absent')}>{through.get(test, 'absent')}"
                for test in sorted(direct.keys() | through.keys())
                if direct.get(test) != through.get(test)
            }
            differences |= differ
            count = collections.Counter(through.values())
            print(f"{suite:10} {mode:12} {count['passed']:7} {count['failed']:7} {count['skipped']:8} {len(differ):7}")
    print()
    wrong = 0
    for key, outcome in differences.items():
        listed_outcome, sometimes = expected.get(key, ("", False))
        known = sometimes or listed_outcome == outcome
        wrong += not known
        print(f"{'known' if known else 'NEW  '} {' '.join(key)} {outcome}")
    for key, (outcome, sometimes) in expected.items():
        if key not in differences and not sometimes:
            wrong += 1
            print(f"GONE  {' '.join(key)} {outcome}")
    print(f"\n{len(differences)} differences, {wrong} of them not as listed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
