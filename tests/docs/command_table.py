"""How each command of the documentation is run: here, by which other test, or why not.

A command of `diffmining` that nothing below names is run by `test_docs_commands.py` itself, with
the stand-ins and the small numbers below. A command is named by its first words, and the name with
most words counts.
"""

from __future__ import annotations

from collections.abc import Mapping

IN_PLACE_OF = {
    "--dataset": "photos",
    "--root": "mined",
    "--model": "tiny",
}
"""Values of options: all commands share one small dataset, one root and the built-in model, so that
each computes only what is new with it."""

WORDS_IN_PLACE_OF = {
    "ROOT": "mined",
    "URL": "place",
    "copy": "mined",
    "demo": "mined",
    "s3://bucket": "place",
    "s3://results/check": "place",
    # A root is the same on S3: tests/e2e/test_s3_run.py.
    "s3://results/photos": "mined",
    "s3://results/streets": "mined",
}
"""Places that are given without an option."""

SMALL = {
    "--size": "64",
    "--finetune-steps": "2",
    "--finetune-batch": "2",
    "--learning-rate": "2e-3",
    "--schedule": "cosine",
    "--held-out": "0",
    "--preview-every": "0",
    "--draws": "2",
    "--k": "2",
    "--top": "12",
    "--shard-rows": "20",
    "--before-shards": "1",
    "--device": "cpu",
}
"""Numbers that decide how long a command takes; given to each command that has the option, in place
of what it says, so that one model and one set of maps serve all of them."""

RUN_BY: Mapping[str, str] = {
    # Work of minutes or hours, for which other tests have small datasets of the right kind.
    "diffmining bootstrap": "tests/deployments/test_bootstrap.py::"
    "test_an_empty_server_gets_everything",
    "diffmining bootstrap --profile our-place.toml": "tests/deployments/test_bootstrap.py::"
    "test_only_what_differs_is_changed",
    "diffmining compare": "tests/flows/test_compare.py::"
    "test_the_command_goes_on_where_it_stopped_to_the_same_patches",
    "diffmining download": "tests/flows/test_download.py::"
    "test_a_dataset_comes_whole_is_unpacked_and_checked_and_not_fetched_again",
    "diffmining download models/cardb": "tests/flows/test_download.py::"
    "test_a_model_comes_into_a_folder",
    "diffmining download places": "tests/flows/test_download.py::"
    "test_data_on_request_are_asked_for_and_checked",
    "diffmining download xray": "tests/flows/test_download.py::"
    "test_data_on_request_are_asked_for_and_checked",
    "diffmining finetune --dry-run --recipe": "tests/flows/test_finetune_flow.py::"
    "test_a_dry_run_says_what_it_would_cost_and_trains_nothing",
    "diffmining index --recipe": "tests/flows/test_own_recipe.py::"
    "test_index_reads_what_is_trained_on_too",
    "diffmining localize": "tests/flows/test_localize.py::"
    "test_masks_are_scored_by_the_command_and_only_what_is_missing_is_computed",
    "diffmining localize --recipe xray": "tests/flows/test_localize.py::"
    "test_xrays_as_published_are_scored_against_the_boxes_of_their_findings",
    "diffmining mine --dataset s3://photos/streets": "tests/e2e/test_s3_run.py::"
    "test_dataset_and_results_on_s3_are_as_on_local_disk",
    "diffmining mine --dry-run --dataset demo/street_scenes": "tests/flows/test_dry_run.py::"
    "test_the_command_says_it_as_a_table",
    "diffmining mine --dataset photos --root mined-sd": "tests/flows/test_own_recipe.py::"
    "test_what_the_user_says_goes_before_the_recipe",
    "diffmining mine --recipe": "tests/flows/test_own_recipe.py::"
    "test_a_recipe_says_what_is_trained_on_mined_and_said",
    "diffmining nightly": "tests/flows/test_nightly.py::test_only_the_new_shard_was_measured",
    "diffmining recipes paintings.toml": "tests/core/recipes/test_recipes.py::"
    "test_the_worked_example_of_the_documentation_works",
    "diffmining serve": "tests/flows/test_serve.py::"
    "test_the_command_prints_its_address_and_ends_quietly",
    "diffmining study finetuning": "tests/flows/test_study.py::"
    "test_truth_is_measured_at_each_step_of_one_finetuning",
    "diffmining study timesteps": "tests/flows/test_study_sides.py::"
    "test_each_range_of_timesteps_is_measured_and_the_mined_one_is_there_already",
    "diffmining study noise": "tests/flows/test_study_sides.py::"
    "test_seeds_differ_by_their_draws_alone_and_each_group_has_its_pairs",
    "diffmining study patch-sizes": "tests/flows/test_study_sides.py::"
    "test_sizes_are_cut_from_the_maps_that_are_there",
    "diffmining study clusters": "tests/flows/test_study_clusters.py::"
    "test_the_patches_that_are_there_are_clustered_in_each_way",
    "diffmining study predictability": "tests/flows/test_study_predictability.py::"
    "test_patches_of_each_kind_are_seen_without_their_label",
    "diffmining study generated": "tests/flows/test_study_generated.py::"
    "test_generated_images_are_a_dataset_of_their_own_and_are_mined",
    "diffmining translate": "tests/flows/test_translate.py::"
    "test_the_command_says_what_it_would_take_and_takes_it",
    # Programs of the repository.
    "./make-secrets": "tests/infra/test_compose.py::"
    "test_every_secret_comes_from_a_file_that_make_secrets_makes",
    "cp compose.env.example": "tests/infra/test_compose.py::"
    "test_the_example_names_every_variable_and_gives_no_value",
    "infra/bucket-policy/apply": "tests/e2e/test_bucket_policy.py::"
    "test_a_worker_makes_results_and_deletes_none_an_operator_may",
    "infra/local/stack start": "tests/infra/test_local_stack.py::"
    "test_runs_flows_and_records_their_tasks",
    "infra/local/stack status": "tests/infra/test_local_stack.py::test_comes_back_after_a_kill",
    "python -m benchmarks.draws": "tests/flows/test_draws_benchmark.py::"
    "test_a_quick_run_says_something_of_every_way_to_draw",
    "python -m benchmarks.full_size": "tests/core/models/test_full_size.py::"
    "test_what_the_benchmark_builds_has_the_published_numbers_of_parameters",
    "python -m benchmarks.speed": "tests/core/numerics/test_plain_loop.py::"
    "test_a_quick_run_says_something_of_every_part",
    "python docs/draw_typicality.py": "tests/docs/test_draw_typicality.py::"
    "test_the_errors_differ_by_what_mining_measures",
    # Prefect's own, against the server of the tests' stack.
    "prefect deployment run": "tests/deployments/test_forms.py::"
    "test_what_only_the_flow_can_see_is_said_in_the_runs_state",
    "prefect event emit": "tests/deployments/test_schedules_and_events.py::"
    "test_a_shard_that_lands_is_mined_with_the_deployments_own_parameters",
    "prefect worker start": "tests/infra/test_local_stack.py::test_another_worker",
}
"""The test that runs it for real."""

A_CLUSTER = "takes a cluster; what it is given is checked in tests/infra/test_kubernetes.py"
A_DAEMON = "takes Docker's daemon; what it is given is checked in tests/infra/test_compose.py"
A_LOOK = "looks at, or pauses, what a server has: Prefect's own command, parsed by Prefect's parser"
A_SHELL = "the shell's own"
HOURS = "takes minutes to hours and measures a machine; what it measures is tested by itself"

NOT_RUN: Mapping[str, str] = {
    ".": A_SHELL,
    "export": A_SHELL,
    "set": A_SHELL,
    "aws s3 sync": "takes Amazon's program; the copy is read again by `diffmining verify`",
    "docker compose": A_DAEMON,
    "helm": A_CLUSTER,
    "kubectl": A_CLUSTER,
    "infra/local/stack install": "installs packages of the system, as root, before the tests: "
    ".ci/run",
    "make audit": "asks PyPI's list of advisories",
    "make demo": "takes ten minutes; test_the_demo_runs_as_make_starts_it runs it on fewer scenes",
    "make docs": "tests/docs/test_reference.py makes the same pages",
    "make check": "runs beside the tests",
    "make test": "runs the tests",
    "jq": "takes jq; that the document is one is seen by tests/e2e/test_command_comfort.py",
    "python -m benchmarks.gallery": "writes hundreds of pictures a label; tests/browser opens 365",
    "python -m benchmarks.orchestration": HOURS,
    "python -m benchmarks.patch_aggregation": HOURS,
    "python -m benchmarks.patch_scoring": HOURS,
    "python -m benchmarks.places": HOURS,
    "python -m benchmarks.precision": HOURS,
    "python -m benchmarks.soak": HOURS,
    "pip install": "installs this package; the tests run in what it has installed",
    "python3 -m venv": "makes an environment; the tests run in one",
    "python docs/photograph_gallery.py": "takes a mined demo; tests/browser opens the gallery",
    "prefect automation ls": A_LOOK,
    "prefect block": A_LOOK,
    "prefect deployment schedule ls": A_LOOK,
    "prefect flow-run": A_LOOK,
    "prefect work-pool": A_LOOK,
}
"""Why nothing runs it."""
