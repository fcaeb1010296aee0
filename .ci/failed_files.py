"""Prints the test files in which a JUnit report has a failure, one a line."""

import sys
import xml.etree.ElementTree as ElementTree

cases = ElementTree.parse(sys.argv[1]).iter("testcase")
failed = {case.get("classname", "") for case in cases if case.find("failure") is not None or case.find("error") is not None}
print(*sorted({name.replace(".", "/") + ".py" for name in failed}), sep="\n")
