/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl trace: what the engine does with each packet, and why, as it happens. */

#include <stdio.h>
#include <stdlib.h>

#include "cli.h"
#include "out.h"
#include "traced.h"
#include "tracer.h"
#include "util.h"

static const struct out_column columns[] = {
    {"time", "TIME", OUT_LEAST(27)},
    {"vnic", "VNIC", OUT_LEAST(10)},
    {"vm", "VM", OUT_LEAST(8)},
    TRACED_COLUMNS,
    {"generation", "GEN", OUT_RIGHT | OUT_LEAST(3)},
    TRACED_RULE_COLUMN,
    {"seq", NULL, 0},
    TRACED_JSON_COLUMNS,
};

struct trace {
    struct tracer tracer;
    struct out *out;
    bool explain;
};

static bool print(void *trace_, const struct moat_traced *x, const uint8_t *data, uint64_t lost)
{
    struct trace *tr = trace_;

    (void)data;
    if (lost) {
        out_flush(tr->out, stdout);
        cli_error("%llu packets were lost", (unsigned long long)lost);
    }
    out_row(tr->out);
    out_time_us(tr->out, "time", (int64_t)MIN(x->time_us, (uint64_t)INT64_MAX));
    out_string(tr->out, "vnic", x->vnic);
    out_string(tr->out, "vm", tracer_vm(&tr->tracer, x->vnic));
    out_integer(tr->out, "generation", (int64_t)x->generation);
    out_integer(tr->out, "seq", (int64_t)x->seq);
    traced_put(tr->out, x, tracer_rule(&tr->tracer, x), tr->explain);
    return !ferror(stdout);
}

static void flush(void *trace_)
{
    struct trace *tr = trace_;

    if (out_n_rows(tr->out))
        out_flush(tr->out, stdout);
    fflush(stdout);
}

static int trace(const struct cli *cli)
{
    struct trace tr = {.explain = cli->opts[CLI_OPT_EXPLAIN]};
    int status = tracer_open(&tr.tracer, cli, 0);

    if (status)
        return status;
    tr.out = out_create(columns, ARRAY_SIZE(columns), cli->json ? OUT_JSON_LINES : OUT_TABLE);
    out_flush(tr.out, stdout);
    fflush(stdout);
    status = tracer_run(&tr.tracer, print, flush, &tr);
    out_destroy(tr.out);
    tracer_close(&tr.tracer);
    return status;
}

const struct cli_command trace_commands[] = {
    {"trace", "[FILTER]...", "follow packets of this host and say what became of each, and why",
     "Packets of all slots, or of those that --vm or --vnic names, that match FILTER, which is\n"
     "that of tcpdump (man 7 pcap-filter), until interrupted or --limit are printed.\n"
     "--format json prints an object per line.\n\n"
     "WHY is what let the packet pass (session, rule, related, fragment, state) or the reason\n"
     "for which it was refused; --explain says what that means. RULE is the rule that decided,\n"
     "or that admitted the session. SESSION is the session behind the packet: local/remote\n"
     "state and age. GEN is the policy's generation, the session's if there is one.\n\n"
     "Packets that come faster than they can be told are lost and counted; the traffic itself\n"
     "never waits.",
     TRACER_OPTIONS | CLI_O(EXPLAIN), 0, SIZE_MAX, false, trace},
    {.name = NULL},
};
