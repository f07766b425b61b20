/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl replay: what a policy would make of captured packets. */

#include "replay.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "file.h"
#include "openvswitch/json.h"
#include "out.h"
#include "policy/policy.h"
#include "subject.h"
#include "text.h"
#include "traced.h"
#include "util.h"

#define ROWS_PER_FLUSH 64

static const struct out_column columns[] = {
    {"number", "NO", OUT_RIGHT | OUT_LEAST(5)},
    {"time", "TIME", OUT_LEAST(27)},
    TRACED_COLUMNS,
    {"answer_text", "ANSWER", OUT_LEAST(6)},
    TRACED_RULE_COLUMN,
    {"vnic", NULL, 0},
    {"judged", NULL, 0},
    {"answer", NULL, 0},
    {"released", NULL, 0},
    TRACED_JSON_COLUMNS,
};

static const char *const answers[MOAT_N_ANSWERS] = {"none", "rst", "icmp"};

struct replay {
    const struct cli *cli;
    struct moat_policy *policy;
    struct moat_replay *replay;
    struct out *out; /* NULL: only the summary */
    bool explain, refused, passed;
    uint64_t n, n_judged, n_passed[2], n_refused[2][MOAT_N_REASONS], n_answers[MOAT_N_ANSWERS];
};

/* --- a packet --------------------------------------------------------------------- */

static void put_other(struct out *o, const struct moat_captured *c)
{
    out_value(o, "verdict", json_null_create(), xstrdup("-"));
    out_value(o, "packet_text", NULL, xstrdup("(neither from nor to the VM)"));
    out_integer(o, "frame_len", c->total);
}

static void put_judged(struct replay *r, const struct moat_replayed *x)
{
    char buf[1024];
    bool known = traced_has_rule(&x->traced) &&
                 moat_policy_rule_text(r->policy, x->traced.rule, buf, sizeof buf, NULL) >= 0;

    traced_put(r->out, &x->traced, known ? buf : NULL, r->explain);
    out_string(r->out, "vnic", x->traced.vnic);
    out_value(r->out, "answer",
              x->answer ? json_string_create(answers[x->answer]) : json_null_create(), NULL);
    out_value(r->out, "answer_text", NULL, xstrdup(x->answer ? answers[x->answer] : ""));
    out_integer(r->out, "released", x->released);
}

static void print(struct replay *r, const struct moat_captured *c, const struct moat_replayed *x)
{
    bool passed = x->judged && x->traced.verdict == MOAT_ALLOW;

    if ((r->refused && (passed || !x->judged)) || (r->passed && !passed))
        return;
    out_row(r->out);
    out_integer(r->out, "number", (int64_t)c->number);
    out_time_us(r->out, "time", (int64_t)MIN(c->time_us, (uint64_t)INT64_MAX));
    out_bool(r->out, "judged", x->judged);
    if (x->judged)
        put_judged(r, x);
    else
        put_other(r->out, c);
    if (out_n_rows(r->out) >= ROWS_PER_FLUSH)
        out_flush(r->out, stdout);
}

static bool one(void *replay_, const struct moat_captured *c)
{
    struct replay *r = replay_;
    struct moat_replayed x;

    moat_replay_packet(r->replay, c, &x);
    r->n++;
    if (x.judged) {
        unsigned dir = x.traced.flow.dir & 1;

        r->n_judged++;
        if (x.traced.verdict == MOAT_ALLOW)
            r->n_passed[dir]++;
        else
            r->n_refused[dir][MIN(x.traced.reason, MOAT_N_REASONS - 1)]++;
        r->n_answers[x.answer]++;
    }
    if (r->out)
        print(r, c, &x);
    return !ferror(stdout);
}

/* --- the summary ------------------------------------------------------------------- */

static void json_count(struct json *j, const char *key, uint64_t n)
{
    json_object_put(j, key, json_integer_create((int64_t)n));
}

static void summary_json(const struct replay *r, const uint64_t *counters)
{
    struct json *all = json_object_create(), *s = json_object_create();
    struct json *refused = json_array_create_empty();
    char *text;

    json_count(s, "packets", r->n);
    json_count(s, "judged", r->n_judged);
    json_count(s, "passed_from_vm", r->n_passed[MOAT_FROM_VM]);
    json_count(s, "passed_to_vm", r->n_passed[MOAT_TO_VM]);
    for (unsigned dir = 0; dir < 2; dir++)
        for (unsigned k = 0; k < MOAT_N_REASONS; k++)
            if (r->n_refused[dir][k]) {
                struct json *j = json_object_create();

                json_object_put_string(j, "direction", dir == MOAT_FROM_VM ? "from-vm" : "to-vm");
                json_object_put_string(j, "reason", moat_reason_name(k));
                json_count(j, "packets", r->n_refused[dir][k]);
                json_array_add(refused, j);
            }
    json_object_put(s, "refused", refused);
    json_count(s, "sessions", counters[MOAT_C_SESSIONS_CREATED]);
    json_count(s, "answers_rst", r->n_answers[MOAT_ANSWER_RST]);
    json_count(s, "answers_icmp", r->n_answers[MOAT_ANSWER_ICMP]);
    json_object_put(all, "summary", s);
    text = json_to_string(all, JSSF_SORT);
    printf("%s\n", text);
    free(text);
    json_destroy(all);
}

static void summary_text(const struct replay *r, const uint64_t *counters)
{
    uint64_t passed = r->n_passed[MOAT_FROM_VM] + r->n_passed[MOAT_TO_VM];

    printf("%s%" PRIu64 " packets: %" PRIu64 " neither from nor to the VM, %" PRIu64
           " passed (%" PRIu64 " from it, %" PRIu64 " to it), %" PRIu64 " refused\n",
           r->out ? "\n" : "", r->n, r->n - r->n_judged, passed, r->n_passed[MOAT_FROM_VM],
           r->n_passed[MOAT_TO_VM], r->n_judged - passed);
    for (unsigned dir = 0; dir < 2; dir++)
        for (unsigned k = 0; k < MOAT_N_REASONS; k++)
            if (r->n_refused[dir][k])
                printf("  refused %-7s %-20s %" PRIu64 "%s%s\n",
                       dir == MOAT_FROM_VM ? "from-vm" : "to-vm", moat_reason_name(k),
                       r->n_refused[dir][k], r->explain ? "  " : "",
                       r->explain ? moat_reason_text(k) : "");
    printf("%" PRIu64 " sessions opened\n", counters[MOAT_C_SESSIONS_CREATED]);
    if (r->n_answers[MOAT_ANSWER_RST] || r->n_answers[MOAT_ANSWER_ICMP])
        printf("%" PRIu64 " answered with RST, %" PRIu64 " with ICMP\n",
               r->n_answers[MOAT_ANSWER_RST], r->n_answers[MOAT_ANSWER_ICMP]);
}

/* --- the command ------------------------------------------------------------------- */

static struct moat_policy *read_policy(const char *file)
{
    struct moat_diags *diags = moat_diags_create();
    struct moat_policy *policy = NULL;
    size_t len;
    char *text = file_read(file, MOAT_POLICY_MAX_TEXT, &len), *said = NULL, *plain;

    if (text)
        policy = moat_policy_parse(text, len, file_name(file), diags);
    if (text && !policy && (said = moat_diags_text(diags))) {
        plain = text_lines(said);
        fputs(plain, stderr);
        free(plain);
    }
    free(said);
    free(text);
    moat_diags_destroy(diags);
    return policy;
}

static int read_capture(struct replay *r, const char *file)
{
    uint64_t counters[MOAT_N_COUNTERS];
    char err[512];
    int rc;

    if (!r->cli->opts[CLI_OPT_SUMMARY])
        r->out =
            out_create(columns, ARRAY_SIZE(columns), r->cli->json ? OUT_JSON_LINES : OUT_TABLE);
    rc = moat_capture_read(file, one, r, err, sizeof err);
    if (r->out && (r->n || !rc))
        out_flush(r->out, stdout);
    if (r->n || !rc) {
        moat_replay_counters(r->replay, counters);
        if (r->cli->json)
            summary_json(r, counters);
        else
            summary_text(r, counters);
    }
    out_destroy(r->out);
    if (rc)
        cli_error("%s: %s", file_name(file), err);
    return rc ? CLI_FAILED : CLI_OK;
}

static int replay(const struct cli *cli)
{
    struct replay r = {.cli = cli,
                       .explain = cli->opts[CLI_OPT_EXPLAIN],
                       .refused = cli->opts[CLI_OPT_REFUSED],
                       .passed = cli->opts[CLI_OPT_PASSED]};
    struct moat_replay_conf conf = {0};
    struct subject subject;
    int64_t pickup = 0;
    char err[512];
    int status;

    if (r.refused && r.passed)
        return cli_usage(cli, "--refused and --passed leave nothing; without both, all packets");
    if (file_is_stdin(cli->args[0]) && file_is_stdin(cli->args[1]))
        return cli_usage(cli, "standard input cannot be both policy and capture");
    if (!cli_number(cli, CLI_OPT_PICKUP, 0, 86400, &pickup))
        return CLI_USAGE;
    status = subject_open(&subject, cli);
    if (status)
        return status;
    status = CLI_FAILED;
    r.policy = read_policy(cli->args[0]);
    if (r.policy) {
        conf = (struct moat_replay_conf){.policy = r.policy,
                                         .inventory = subject.inventory,
                                         .vnics = subject.vnics,
                                         .n_vnics = subject.n_vnics,
                                         .pickup_s = (uint32_t)pickup};
        r.replay = moat_replay_create(&conf, err, sizeof err);
        if (r.replay)
            status = read_capture(&r, cli->args[1]);
        else
            cli_error("%s", err);
    }
    moat_replay_destroy(r.replay);
    moat_policy_destroy(r.policy);
    subject_close(&subject);
    return status;
}

const struct cli_command replay_commands[] = {
    {"replay", "POLICY CAPTURE", "judge a capture file offline, as the switch would under a policy",
     "Runs a pcap or pcapng file (\"-\": standard input) through the same filter that runs in the\n"
     "switch and prints what becomes of each packet, and why. Its clock is the capture's.\n\n"
     "Packets from one of the VM's MACs (--mac) leave it, those to one reach it, and so do\n"
     "broadcasts and multicasts. Without --mac, and where a capture has no MACs, its addresses\n"
     "(--address) tell. All others are listed and not judged. --name and --label say what\n"
     "groups of the policy the VM is in. If the policy speaks of other VMs, of gateways or\n"
     "networks, --inventory names a file with all of them, and --name the VM in question:\n\n"
     "    {\"networks\": [{\"name\": \"blue\", \"subnets\": [\"10.0.0.0/24\"]}],\n"
     "     \"vms\": [{\"name\": \"web\", \"labels\": {\"role\": \"web\"},\n"
     "              \"vnics\": [{\"vnic\": \"web-0\", \"network\": \"blue\",\n"
     "                         \"mac\": \"52:54:00:00:00:01\", \"addresses\": "
     "[\"10.0.0.5\"]}]}]}\n\n"
     "Networks are as \"network list\", VMs as \"vm show\" print them as JSON.\n\n"
     "Exit code: 1 if the file is broken, behind what could be read of it.",
     CLI_O(MAC) | CLI_O(ADDRESS) | CLI_O(NAME) | CLI_O(LABEL) | CLI_O(INVENTORY) | CLI_O(PICKUP) |
         CLI_O(REFUSED) | CLI_O(PASSED) | CLI_O(EXPLAIN) | CLI_O(SUMMARY),
     2, 2, false, replay},
    {.name = NULL},
};
