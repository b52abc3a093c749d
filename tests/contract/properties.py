"""Print what the contract holds, and for whom: `python tests/contract/properties.py`."""
import ast
from pathlib import Path

SUBJECTS = {"each": "every one", "each_with_a_codebook": "those with a codebook", "each_that_learns": "those that start from data"}


def properties(path):
    """The name of each test as a sentence, and for whom it holds."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            names = [each.id for each in node.decorator_list if isinstance(each, ast.Name)]
            whom = next((SUBJECTS[name] for name in names if name in SUBJECTS), "")
            yield node.name.removeprefix("test_").replace("_", " "), whom


def main():
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        rows = list(properties(path))
        print(f"{path.stem.removeprefix('test_')}: {len(rows)} properties")
        for sentence, whom in rows:
            print(f"  {sentence}{f'  [{whom}]' if whom else ''}")


if __name__ == "__main__":
    main()
