"""Which classifier reads handwritten digits best?

A small real workflow on scikit-learn's digits (1,797 images of 8 × 8 pixels): ten candidates are
trained side by side, those that do well are cross-validated, the winner meets images that no
one has seen yet, and a plot of its mistakes is drawn.

    python examples/quickstart.py
"""

from __future__ import annotations

import chelate as ct

CANDIDATES = [
    {"kind": "svm", "C": C, "gamma": gamma} for C in (1, 10) for gamma in (0.0001, 0.001, 0.01)
] + [
    {"kind": "forest", "n_estimators": 100, "max_depth": depth} for depth in (4, 8, 16)
] + [
    {"kind": "neighbours", "n_neighbors": 3},
]  # fmt: skip


def make_model(candidate):
    """A plain helper: tasks may call whatever they like."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    options = {name: value for name, value in candidate.items() if name != "kind"}
    if candidate["kind"] == "forest":
        return RandomForestClassifier(**options, random_state=0)
    return {"svm": SVC, "neighbours": KNeighborsClassifier}[candidate["kind"]](**options)


def title_of(candidate):
    options = ", ".join(f"{name}={value}" for name, value in candidate.items() if name != "kind")
    return f"{candidate['kind']}({options})"


# Every electron is a task: it runs in a process of its own, beside others where it can.


@ct.electron
def load_digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, digits = load_digits(return_X_y=True)
    return train_test_split(images, digits, test_size=0.3, random_state=0, stratify=digits)


@ct.electron
def quick_score(candidate, images, digits):
    """Train on most of the training images and score on the rest."""
    from sklearn.model_selection import train_test_split

    train, test, train_digits, test_digits = train_test_split(images, digits, random_state=1)
    score = make_model(candidate).fit(train, train_digits).score(test, test_digits)
    print(f"{title_of(candidate)}: {score:.3f}")
    return candidate, score


@ct.electron
def cross_validate(candidate, images, digits):
    """A slower look, by ten-fold cross-validation."""
    from sklearn.model_selection import cross_val_score

    return candidate, float(cross_val_score(make_model(candidate), images, digits, cv=10).mean())


@ct.electron
def pick_best(scored):
    return max(scored, key=lambda pair: pair[1])


# A workflow inside the workflow: it is built when its input is there, so it can look at scores
# and decide how many candidates deserve the slower look.


@ct.electron
@ct.lattice
def finals(scored, images, digits):
    best = max(score for _, score in scored)
    close = [candidate for candidate, score in scored if score > best - 0.01]
    return pick_best([cross_validate(candidate, images, digits) for candidate in close])


@ct.electron
def examine(winner, train, test, train_digits, test_digits):
    """Train the winner on everything and show it images that no one has seen yet."""
    candidate, _ = winner
    guesses = make_model(candidate).fit(train, train_digits).predict(test)
    return {
        "model": title_of(candidate),
        "accuracy": float((guesses == test_digits).mean()),
        "guesses": guesses,
    }


@ct.electron
def plot_mistakes(report, digits):
    """The confusion matrix as a PNG."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.metrics import ConfusionMatrixDisplay

    figure, axes = plt.subplots(figsize=(6, 6))
    ConfusionMatrixDisplay.from_predictions(
        digits, report["guesses"], ax=axes, colorbar=False, cmap="Blues"
    )
    axes.set_title(f"{report['model']}: {report['accuracy']:.1%} right")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return png.getvalue()


@ct.lattice
def digits_workflow(candidates):
    train, test, train_digits, test_digits = load_digits()
    scored = [quick_score(candidate, train, train_digits) for candidate in candidates]
    winner = finals(scored, train, train_digits)
    report = examine(winner, train, test, train_digits, test_digits)
    return {"report": report, "plot": plot_mistakes(report, test_digits)}


def main():
    print(digits_workflow.draw(CANDIDATES), "\n")

    dispatch_id = ct.dispatch(digits_workflow)(CANDIDATES)
    result = ct.get_result(dispatch_id, wait=True).raise_for_status()

    print("Quick scores")
    for task in result.get_all_node_results():
        if task["node_name"] == "quick_score":
            candidate, score = task["output"]
            print(f"  {score:.3f}  {title_of(candidate)}")

    inner = result.get_node_result("finals")["sublattice_result"]
    print("Cross-validated, in a workflow of their own")
    for task in inner.get_all_node_results():
        if task["node_name"] == "cross_validate":
            candidate, score = task["output"]
            print(f"  {score:.3f}  {title_of(candidate)}")

    report = result.result["report"]
    plot = result.save_result() / "mistakes.png"
    plot.write_bytes(result.result["plot"])
    took = (result.end_time - result.start_time).total_seconds()
    print(
        f"\nThe winner, {report['model']}, reads {report['accuracy']:.1%} of unseen digits right."
    )
    print(f"It took {took:.1f} s; a task each: chelate show {dispatch_id}")
    print(f"Its mistakes are drawn in {plot}")


if __name__ == "__main__":
    main()
