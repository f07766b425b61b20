/* SPDX-License-Identifier: Apache-2.0 */

/* Moat against two independent trackers, on conversations made up from a seed.
 *
 *   run_differential tcp|other [--conversations N] [--first N] [--conversation N] [-v]
 *                              [--show NAME]
 *
 * $MOAT_SEED is the seed.  -v prints every packet with its verdicts, --conversation is one
 * alone, --show prints the first conversations with an approved difference.  Fails if a difference
 * is found that nobody approved (approved.c). */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "approved.h"
#include "tracker.h"

#define BATCH 200 /* conversations between two flushes of the others' tables */
#define MAX_COMPLAINTS 5

struct run {
    void (*make)(struct talk *, uint64_t seed, uint32_t number);
    uint64_t seed;
    uint32_t first, n;
    bool verbose;
    const char *show;
    uint64_t packets, passed[3], hits[64], same, unexplained;
};

struct batch {
    struct talk talks[BATCH];
    struct seen seen[BATCH][TALK_PACKETS];
    struct kernel_packet packets[BATCH * TALK_PACKETS];
    uint8_t bytes[BATCH][TALK_BYTES];
    unsigned n;
};

static struct batch b;

/* --- printing --- */

static const char *flags_of(const struct packet *p)
{
    static char text[8];
    unsigned n = 0;

    for (unsigned i = 0; i < 6; i++)
        if (p->flags >> i & 1)
            text[n++] = "FSRPAU"[i];
    text[n] = '\0';
    return n ? text : "-";
}

static void print_packet(const struct talk *t, const struct seen *seen, unsigned i)
{
    const struct packet *p = &t->p[i];
    const struct seen *s = &seen[i];

    printf("%4u %s%c ", i, p->from == CLIENT ? "client>" : "server>", p->forged ? '*' : ' ');
    if (p->kind == K_TCP) {
        printf("%-4s seq %d ack %d len %u win %u", flags_of(p), (int)(p->seq - t->isn[p->from]),
               p->flags & 16 ? (int)(p->ack - t->isn[!p->from]) : (int)p->ack, p->len, p->win);
        if (p->wscale)
            printf(" scale %u", p->wscale & 15);
        for (unsigned k = 0; k < p->n_sack; k++)
            printf(" sack %d-%d", (int)(p->sack[k][0] - t->isn[!p->from]),
                   (int)(p->sack[k][1] - t->isn[!p->from]));
    } else if (p->kind == K_ERROR) {
        printf("error %u/%u about %d, wrong %#x, %u bytes%s", p->type, p->code, p->quotes, p->wrong,
               p->len, p->router ? ", from a router" : "");
    } else if (p->kind == K_ICMP) {
        printf("type %u/%u id %u len %u", p->type, p->code, p->id, p->len);
    } else {
        printf("len %u", p->len);
    }
    printf(" | moat %s%s", s->reason ? moat_reason_name(s->reason) : "passes",
           s->unbelieved ? ", unbelieved" : "");
    printf(" | chain: ovs %s, kernel %s | side by side: ovs %s, kernel %s", s->ovs[0] ? "+" : "-",
           s->kernel[0] ? "+" : "-", s->ovs[1] ? "+" : "-", s->kernel[1] ? "+" : "-");
    if (p->kind == K_TCP && s->live)
        for (unsigned d = 0; d < 2; d++)
            printf(" | %c %c lo %d hi %d win %u scale %x", "cs"[d], "NSECDR"[s->before[d].state],
                   (int)(s->before[d].seq_lo - t->isn[d]), (int)(s->before[d].seq_hi - t->isn[d]),
                   s -> before[d].max_win, s->before[d].wscale);
    printf("\n");
}

static void print_talk(const struct talk *t, const struct seen *seen)
{
    printf("seed %llu, conversation %u: IPv%u, protocol %u, shape %u: %s\n",
           (unsigned long long)t->seed, t->number, t->family, t->proto, t->shape, t->plan);
    for (unsigned i = 0; i < t->n; i++)
        print_packet(t, seen, i);
}

/* --- running --- */

static void make_batch(struct run *r, uint32_t first)
{
    for (unsigned k = 0; k < b.n; k++) {
        b.talks[k].bytes = b.bytes[k];
        r->make(&b.talks[k], r->seed, first + k);
        moat_judge(&b.talks[k], b.seen[k]);
    }
}

static void run_others(enum mode mode)
{
    unsigned n = 0;

    for (unsigned k = 0; k < b.n; k++) {
        struct talk *t = &b.talks[k];

        for (unsigned i = 0; i < t->n; i++) {
            if (mode == CHAIN && b.seen[k][i].reason)
                continue;
            b.packets[n++] = (struct kernel_packet){.frame = t->bytes + t->p[i].at,
                                                    .size = t->p[i].size,
                                                    .from_vm = is_vm(t, t->p[i].from)};
            b.seen[k][i].ovs[mode] = ovs_accepts(t, i);
        }
    }
    kernel_judge(b.packets, n);
    n = 0;
    for (unsigned k = 0; k < b.n; k++)
        for (unsigned i = 0; i < b.talks[k].n; i++)
            if (mode == SIDE_BY_SIDE || !b.seen[k][i].reason)
                b.seen[k][i].kernel[mode] = b.packets[n++].accepted;
    ovs_forget();
    kernel_forget();
}

static void explain(struct run *r, enum difference difference, const struct past *past)
{
    int which = find_approved(difference, past);

    if (which >= 0) {
        if (r->show && !strcmp(r->show, approved[which].name) && r->hits[which] < MAX_COMPLAINTS) {
            printf("\npacket %u shows %s (%s):\n", past->i, r->show,
                   past->mode == CHAIN ? "chain" : "side by side");
            print_talk(past->talk, past->seen);
        }
        r->hits[which]++;
    } else if (r->unexplained++ < MAX_COMPLAINTS) {
        printf("\npacket %u: Moat %s it, both others do not (%s), and nobody approved that:\n",
               past->i, difference == LOOSER ? "passes" : "refuses",
               past->mode == CHAIN ? "chain" : "side by side");
        print_packet(past->talk, past->seen, past->i);
        print_talk(past->talk, past->seen);
    }
}

static void compare(struct run *r, const struct talk *t, const struct seen *seen)
{
    bool same = true, in_step = true;
    struct past past;

    for (unsigned i = 0; i < t->n; i++) {
        const struct seen *s = &seen[i];
        bool moat = !s->reason, ovs = s->ovs[SIDE_BY_SIDE], kernel = s->kernel[SIDE_BY_SIDE];

        r->packets++;
        r->passed[0] += moat;
        r->passed[1] += ovs;
        r->passed[2] += kernel;
        if (moat && !s->ovs[CHAIN] && !s->kernel[CHAIN]) {
            look_back(&past, t, seen, i, CHAIN);
            explain(r, LOOSER, &past);
        }
        if (in_step && ovs == kernel && ovs != moat && (ovs || same)) {
            look_back(&past, t, seen, i, SIDE_BY_SIDE);
            explain(r, ovs ? STRICTER : LOOSER, &past);
            in_step = false; /* from here on they are in different states */
        }
        same &= ovs == moat && kernel == moat;
    }
    r->same += same;
}

static int report(const struct run *r)
{
    int failed = r->unexplained != 0;

    printf("\nseed %llu, conversations %u to %u, %llu packets\n", (unsigned long long)r->seed,
           r->first, r->first + r->n - 1, (unsigned long long)r->packets);
    printf("accepted: Moat %llu, Open vSwitch %llu, kernel %llu\n",
           (unsigned long long)r->passed[0], (unsigned long long)r->passed[1],
           (unsigned long long)r->passed[2]);
    printf("%8llu  conversations with the same verdicts of all three throughout\n",
           (unsigned long long)r->same);
    for (unsigned a = 0; a < n_approved; a++)
        if (r->hits[a])
            printf("%8llu  %-9s %s\n", (unsigned long long)r->hits[a],
                   approved[a].difference == LOOSER ? "looser" : "stricter", approved[a].name);
    printf("%8llu  unexplained\n", (unsigned long long)r->unexplained);
    if (failed)
        printf("again: MOAT_SEED=%llu, the same kind, --conversation N -v\n",
               (unsigned long long)r->seed);
    return failed;
}

static int usage(void)
{
    fprintf(stderr, "usage: run_differential tcp|other [--conversations N] [--first N] "
                    "[--conversation N] [-v] [--show NAME]\n");
    return 2;
}

int main(int argc, char **argv)
{
    struct run r = {.seed = 20261, .n = 50000};

    if (argc < 2 || (strcmp(argv[1], "tcp") && strcmp(argv[1], "other")))
        return usage();
    r.make = strcmp(argv[1], "tcp") ? talk_other : talk_tcp;
    for (int i = 2; i < argc; i++) {
        bool more = i + 1 < argc;

        if (!strcmp(argv[i], "-v"))
            r.verbose = true;
        else if (!strcmp(argv[i], "--conversations") && more)
            r.n = (uint32_t)strtoul(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--show") && more)
            r.show = argv[++i];
        else if (!strcmp(argv[i], "--first") && more)
            r.first = (uint32_t)strtoul(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--conversation") && more)
            r.first = (uint32_t)strtoul(argv[++i], NULL, 0), r.n = 1;
        else
            return usage();
    }
    if (getenv("MOAT_SEED"))
        r.seed = strtoull(getenv("MOAT_SEED"), NULL, 0);
    kernel_start();
    for (uint32_t at = 0; at < r.n; at += b.n) {
        b.n = r.n - at < BATCH ? r.n - at : BATCH;
        make_batch(&r, r.first + at);
        run_others(CHAIN);
        run_others(SIDE_BY_SIDE);
        for (unsigned k = 0; k < b.n; k++) {
            if (r.verbose)
                print_talk(&b.talks[k], b.seen[k]);
            compare(&r, &b.talks[k], b.seen[k]);
        }
    }
    return report(&r);
}
