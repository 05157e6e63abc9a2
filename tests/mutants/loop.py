"""Mutants of a worker's records, of the reports, and of the launcher's supervision of a run."""

from tests.mutants.mutant import Mutant

LOOP, INCARNATIONS = "tests/degan/worker/test_loop.py::", "tests/degan/worker/test_loop_incarnations.py::"
REPORT, COMPARE = "tests/degan/reports/test_report_figures.py::", "tests/degan/reports/test_compare_figures.py::"
SUPERVISE, BOARD, PLAN = (
    "tests/launch/test_supervise.py::",
    "tests/launch/test_board.py::",
    "tests/launch/test_plan.py::",
)

MUTANTS = (
    Mutant(
        "the training time of a resumed run begins at zero",
        "degan/worker/loop.py",
        '        self._trained_s = float(checkpoint.values.get("trained_s", 0.0))\n',
        "",
        INCARNATIONS + "test_a_resumed_run_goes_on_with_time_images_and_lines",
    ),
    Mutant(
        "a line's losses are the mean over all steps so far",
        "degan/worker/loop.py",
        "        self._losses = []\n        self._log_mark",
        "        self._log_mark",
        LOOP + "test_every_line_of_a_run",
    ),
    Mutant(
        "no line tells how many images were drawn",
        "degan/worker/loop.py",
        '"images": self._setup.shard.drawn,',
        '"images": 0,',
        LOOP + "test_every_line_of_a_run",
    ),
    Mutant(
        "a checkpoint has the score of an earlier step",
        "degan/worker/loop.py",
        "if self._score[0] == step and",
        "if self._score[0] >= 0 and",
        LOOP + "test_the_content_of_the_checkpoints",
    ),
    Mutant(
        "later checkpoints stay when an older one is gone on from",
        "degan/worker/loop.py",
        "        self._checkpoints.forget_after(step)\n",
        "",
        INCARNATIONS + "test_lines_after_the_step_of_an_older_checkpoint_are_forgotten",
    ),
    Mutant(
        "the last step is shown and evaluated only where its number fits",
        "degan/worker/loop.py",
        "(step % every == 0 or step == self._settings.run.steps)",
        "step % every == 0",
        LOOP + "test_all_tasks_are_due_at_the_last_step_too",
    ),
    Mutant(
        "the last picture is drawn before the rest is exchanged",
        "degan/worker/loop.py",
        "        self._mode.finish()\n        self._show(step)\n",
        "        self._show(step)\n        self._mode.finish()\n",
        LOOP + "test_the_files_of_a_run_and_what_they_show",
    ),
    Mutant(
        "the time at a cut counts as training",
        "degan/worker/loop.py",
        "            self._trained_s += time.monotonic() - began\n"
        "            is_stopping = self._mode.is_stopping(step)\n"
        "            has_state = not (is_sync_point or is_stopping) or self._mode.synchronise(step)\n",
        "            is_stopping = self._mode.is_stopping(step)\n"
        "            has_state = not (is_sync_point or is_stopping) or self._mode.synchronise(step)\n"
        "            self._trained_s += time.monotonic() - began\n",
        LOOP + "test_every_line_of_a_run",
    ),
    Mutant(
        "only the first measures, also where models differ",
        "degan/worker/loop.py",
        "if self._mode.is_shared and not self._mode.is_first():",
        "if not self._mode.is_first():",
        LOOP + "test_a_worker_that_is_not_first_leaves_the_runs_pictures_alone",
    ),
    Mutant(
        "a step that all stop after is synchronised only where something is due",
        "degan/worker/loop.py",
        "not (is_sync_point or is_stopping) or",
        "not is_sync_point or",
        INCARNATIONS + "test_a_step_that_all_stop_after_is_synchronised_though_nothing_is_due",
    ),
    Mutant(
        "a line of no steps would divide by nothing",
        "degan/worker/loop.py",
        "count = max(1, step - since)",
        "count = step - since",
        LOOP + "test_every_line_of_a_run " + INCARNATIONS + "test_a_run_that_is_over_is_shown_and_saved_again",
        harmless="a line is written only after at least one step of this incarnation",
    ),
    Mutant(
        "everybody's metrics are one worker's",
        "degan/runs/journal.py",
        '"worker": self._worker',
        '"worker": 0',
        LOOP + "test_a_worker_that_is_not_first_leaves_the_runs_pictures_alone",
    ),
    Mutant(
        "the line of the checkpoint's own step is forgotten",
        "degan/runs/journal.py",
        'line.get("step", 0) <= step',
        'line.get("step", 0) < step',
        INCARNATIONS + "test_lines_after_the_step_of_an_older_checkpoint_are_forgotten",
    ),
    Mutant(
        "the launcher shows a consequence before its cause",
        "launch/supervise.py",
        "key=lambda w: (w.code != 2, w.number)",
        "key=lambda w: (w.code == 2, w.number)",
        SUPERVISE + "test_the_cause_is_shown_of_several_errors_in_one_look",
    ),
    Mutant(
        "a run in which a worker died ends well",
        "launch/supervise.py",
        "Ending(1 if self._lost else 0)",
        "Ending(0)",
        SUPERVISE + "test_a_death_is_reported_when_it_happens_and_again_at_the_end",
    ),
    Mutant(
        "the rate goes on over another incarnation of the worker",
        "degan/runs/records.py",
        """self.restarts.append((newest, step))
            self.incarnation = len(self.lines)""",
        "self.restarts.append((newest, step))",
        BOARD + "test_rates_begin_anew_with_another_incarnation",
    ),
    Mutant(
        "all workers use the first server",
        "launch/plan.py",
        "urls[number % len(urls)]",
        "urls[0]",
        PLAN + "test_each_worker_has_its_own_server_or_all_the_one",
    ),
    Mutant(
        "a counter that begins anew twice forgets its first incarnation",
        "degan/runs/records.py",
        "value + base.get(key, 0.0) < before",
        "value < before",
        REPORT + "test_counters_that_began_again_twice",
    ),
    Mutant(
        "a comparison shows the best worker's distance",
        "degan/runs/facts.py",
        "worst, lost = (max, math.inf)",
        "worst, lost = (min, math.inf)",
        COMPARE + "test_the_row_of_a_run",
    ),
    Mutant(
        "a curve over time is drawn over seconds whatever the unit",
        "degan/reports/figures.py",
        "(at / divisor, y)",
        "(at, y)",
        REPORT + "test_the_unit_of_a_time_axis",
    ),
    Mutant(
        "a median counts runs that did not reach their end",
        "degan/reports/compare_data.py",
        "[entry for entry in self.entries if facts.is_whole(entry.run)] or self.entries",
        "self.entries",
        COMPARE + "test_a_median_and_its_spread",
    ),
    Mutant(
        "pages escape nothing",
        "degan/reports/page.py",
        "autoescape=True",
        "autoescape=False",
        "tests/degan/reports/test_report.py::test_text_from_a_file_is_escaped",
    ),
    Mutant(
        "old run folders keep an old word",
        "degan/runs/words.py",
        ', "muted": "banned"}\n# Reasons',
        "}\n# Reasons",
        "tests/degan/runs/test_records.py::test_a_record_knows_only_todays_words",
    ),
    Mutant(
        "a section shows itself without its keys",
        "degan/reports/sections/section.py",
        "not self.needs or not keys.isdisjoint(self.needs)",
        "True",
        "tests/degan/reports/test_sections.py::test_without_its_keys_a_section_is_not_there",
    ),
    Mutant(
        "of accuracies the best worker's is the run's",
        "degan/runs/facts.py",
        "else (min, -math.inf)",
        "else (max, -math.inf)",
        "tests/degan/reports/test_sections.py::test_classifiers_are_compared_by_their_accuracy",
    ),
)
