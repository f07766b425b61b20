/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's traced packets: see tracer.h.
 *
 * A trace is of one vNIC or of all, and of one connection: a VM with several vNICs takes one
 * connection for each.  Signals are blocked but while waiting, so that none is missed. */

#include "tracer.h"

#include <errno.h>
#include <inttypes.h>
#include <pcap/pcap.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "openvswitch/dynamic-string.h"
#include "timeval.h"
#include "traced.h"
#include "util.h"

#define FILTER_SNAPLEN 262144 /* what libpcap thinks that there is of a packet */

struct tracer_stream {
    struct moat_ctl *c;
    uint64_t last; /* seq */
};

/* --- the filter --------------------------------------------------------------- */

static int compile_filter(const struct cli *cli, struct bpf_program *prog)
{
    struct ds text = DS_EMPTY_INITIALIZER;
    pcap_t *p = pcap_open_dead(DLT_EN10MB, FILTER_SNAPLEN);
    int status = CLI_OK;

    memset(prog, 0, sizeof *prog);
    for (size_t i = 0; i < cli->n_args; i++)
        ds_put_format(&text, "%s%s", i ? " " : "", cli->args[i]);
    if (!p)
        out_of_memory();
    if (cli->n_args && pcap_compile(p, prog, ds_cstr(&text), 1, PCAP_NETMASK_UNKNOWN)) {
        cli_usage(cli, "the filter \"%s\": %s", ds_cstr(&text), pcap_geterr(p));
        cli_hint("Its syntax: man 7 pcap-filter");
        status = CLI_USAGE;
    } else if (prog->bf_len > MOAT_TRACE_INSNS_MAX) {
        status =
            cli_usage(cli, "the filter \"%s\" becomes %u instructions, at most %u are possible",
                      ds_cstr(&text), prog->bf_len, MOAT_TRACE_INSNS_MAX);
        pcap_freecode(prog);
    }
    pcap_close(p);
    ds_destroy(&text);
    return status;
}

/* --- start and end ------------------------------------------------------------- */

static bool start_stream(struct tracer *t, const char *vnic, struct moat_ctl_trace *ask,
                         const struct bpf_program *prog)
{
    struct tracer_stream *s;

    t->streams = xrealloc(t->streams, (t->n_streams + 1) * sizeof *t->streams);
    s = &t->streams[t->n_streams];
    memset(s, 0, sizeof *s);
    if (!engine_open(t->cli, &s->c))
        return false;
    t->n_streams++;
    memset(ask->vnic, 0, sizeof ask->vnic);
    memcpy(ask->vnic, vnic, MIN(strlen(vnic), sizeof ask->vnic - 1));
    /* The same layout: datapath/trace.c asserts it. */
    if (moat_ctl_trace(s->c, ask, (const struct moat_trace_insn *)prog->bf_insns)) {
        engine_say(t->cli, s->c);
        return false;
    }
    return true;
}

static bool start(struct tracer *t, uint32_t snaplen, const struct bpf_program *prog)
{
    const struct cli *cli = t->cli;
    const char *vm = cli->opts[CLI_OPT_VM], *vnic = cli->opts[CLI_OPT_VNIC];
    struct moat_ctl_trace ask = {.n_insns = prog->bf_len, .snaplen = snaplen};
    bool ok = true;

    ask.which = (cli->opts[CLI_OPT_REFUSED] ? 0 : MOAT_TRACE_PASSED) |
                (cli->opts[CLI_OPT_PASSED] ? 0 : MOAT_TRACE_REFUSED);
    if (!engine_open(cli, &t->c) || !engine_slots(cli, t->c, vnic, vm, &t->slots, &t->n_slots))
        return false;
    rulebook_open(&t->book, cli); /* first: it may take a while, and packets would wait */
    t->book_tried = t->book.generation;
    if (!vm && !vnic)
        return start_stream(t, "", &ask, prog);
    for (size_t i = 0; i < t->n_slots && ok; i++)
        ok = start_stream(t, t->slots[i].conf.vnic, &ask, prog);
    return ok;
}

int tracer_open(struct tracer *t, const struct cli *cli, uint32_t snaplen)
{
    struct bpf_program prog;
    bool ok;

    memset(t, 0, sizeof *t);
    t->cli = cli;
    t->limit = INT64_MAX;
    if (cli->opts[CLI_OPT_REFUSED] && cli->opts[CLI_OPT_PASSED])
        return cli_usage(cli, "--refused and --passed leave nothing; without both, all packets");
    if (!cli_number(cli, CLI_OPT_LIMIT, 1, INT64_MAX, &t->limit) || compile_filter(cli, &prog))
        return CLI_USAGE;
    ok = start(t, snaplen, &prog);
    pcap_freecode(&prog);
    if (!ok) {
        tracer_close(t);
        return CLI_FAILED;
    }
    return CLI_OK;
}

void tracer_close(struct tracer *t)
{
    for (size_t i = 0; i < t->n_streams; i++)
        moat_ctl_close(t->streams[i].c);
    free(t->streams);
    free(t->slots);
    moat_ctl_close(t->c);
    rulebook_close(&t->book);
}

/* --- names --------------------------------------------------------------------- */

static const char *find_vm(const struct tracer *t, const char *vnic)
{
    for (size_t i = 0; i < t->n_slots; i++)
        if (!strcmp(t->slots[i].conf.vnic, vnic))
            return t->slots[i].conf.vm;
    return NULL;
}

const char *tracer_vm(struct tracer *t, const char *vnic)
{
    const char *vm = find_vm(t, vnic);
    struct moat_slot_info *slots;
    size_t n;

    /* It may be newer than we are. */
    if (!vm && time_msec() >= t->slots_next && !moat_ctl_is_dead(t->c) &&
        !moat_ctl_slots(t->c, &slots, &n)) {
        t->slots_next = time_msec() + 1000;
        free(t->slots);
        t->slots = slots;
        t->n_slots = n;
        vm = find_vm(t, vnic);
    }
    return vm ? vm : "";
}

const char *tracer_rule(struct tracer *t, const struct moat_traced *x)
{
    unsigned line;
    bool is_builtin;

    if (!traced_has_rule(x))
        return NULL;
    /* A policy that is newer than the book; asked for once, the database may be away. */
    if (x->generation > t->book_tried) {
        t->book_tried = x->generation;
        rulebook_close(&t->book);
        rulebook_open(&t->book, t->cli);
    }
    return rulebook_text(&t->book, x->generation, x->rule, &line, &is_builtin);
}

/* --- the loop ------------------------------------------------------------------ */

static volatile sig_atomic_t stopped;

static void on_signal(int sig)
{
    (void)sig;
    stopped = 1;
}

/* Blocks the signals that end us; *waiting is the mask to wait with. */
static void catch_signals(sigset_t *waiting)
{
    struct sigaction act = {.sa_handler = on_signal};
    sigset_t block;

    sigemptyset(&block);
    sigaddset(&block, SIGINT);
    sigaddset(&block, SIGTERM);
    sigprocmask(SIG_BLOCK, &block, waiting);
    sigdelset(waiting, SIGINT);
    sigdelset(waiting, SIGTERM);
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
}

static bool is_interrupted(void)
{
    sigset_t pending;

    sigpending(&pending);
    return stopped || sigismember(&pending, SIGINT) || sigismember(&pending, SIGTERM);
}

/* What a stream has.  1: go on, 0: stop, negative: it failed and that has been said. */
static int drain(struct tracer *t, struct tracer_stream *s, tracer_packet_fn *packet, void *aux)
{
    const uint8_t *data;
    struct moat_traced x;
    int rc;

    while ((rc = moat_ctl_next_traced(s->c, &x, &data)) > 0) {
        uint64_t lost = x.seq > s->last + 1 ? x.seq - s->last - 1 : 0;

        s->last = x.seq;
        t->n_lost += lost;
        t->n_packets++;
        if (!packet(aux, &x, data, lost) || (int64_t)t->n_packets >= t->limit || is_interrupted())
            return 0;
    }
    if (rc < 0)
        engine_say(t->cli, s->c);
    return rc < 0 ? rc : 1;
}

int tracer_run(struct tracer *t, tracer_packet_fn *packet, void (*idle)(void *aux), void *aux)
{
    struct pollfd *p = xcalloc(t->n_streams + 1, sizeof *p);
    sigset_t waiting;
    int rc = 1;

    for (size_t i = 0; i < t->n_streams; i++)
        p[i] = (struct pollfd){.fd = moat_ctl_fd(t->streams[i].c), .events = POLLIN};
    /* Of standard output only that its reader went away, as in "| head". */
    p[t->n_streams] = (struct pollfd){.fd = STDOUT_FILENO};
    catch_signals(&waiting);
    /* Who drives us must know when packets count; as tcpdump does. */
    fprintf(stderr, "moatctl: listening on %zu slots\n", t->n_slots);
    while (rc > 0) {
        int n = ppoll(p, t->n_streams + 1, NULL, &waiting);

        if (stopped || (n < 0 && errno != EINTR) || (n > 0 && p[t->n_streams].revents & POLLERR))
            break;
        for (size_t i = 0; i < t->n_streams && n > 0 && rc > 0; i++)
            if (p[i].revents)
                rc = drain(t, &t->streams[i], packet, aux);
        idle(aux);
    }
    free(p);
    fflush(stdout);
    fprintf(stderr, "%" PRIu64 " packets, %" PRIu64 " lost\n", t->n_packets, t->n_lost);
    return rc < 0 ? CLI_FAILED : CLI_OK;
}
