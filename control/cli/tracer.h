/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_TRACER_H
#define MOAT_CLI_TRACER_H 1

/* Follows the packets of this host's engine, for trace and capture: which, says the command line
 * (--vm, --vnic, --refused, --passed, --limit, a filter in the syntax of pcap-filter(7)). */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli.h"
#include "ctl_client.h"
#include "engine.h"

#define TRACER_OPTIONS (CLI_O(VM) | CLI_O(VNIC) | CLI_O(REFUSED) | CLI_O(PASSED) | CLI_O(LIMIT))

struct tracer {
    const struct cli *cli;
    struct moat_ctl *c; /* for requests */
    struct rulebook book;
    uint64_t book_tried; /* newest generation that the book was asked for */
    struct moat_slot_info *slots;
    size_t n_slots;
    long long slots_next; /* not asked for again before this (time_msec()) */
    struct tracer_stream *streams;
    size_t n_streams;
    int64_t limit;
    uint64_t n_packets, n_lost;
};

/* One packet; its first t->cap_len bytes.  `lost`: how many before it.  False: stop. */
typedef bool tracer_packet_fn(void *aux, const struct moat_traced *t, const uint8_t *data,
                              uint64_t lost);

/* Connects and starts; `snaplen` bytes of each frame are wanted.  CLI_OK, or the exit code and said
 * why: then nothing is open. */
int tracer_open(struct tracer *, const struct cli *, uint32_t snaplen);

/* Calls packet() for each until interrupted (SIGINT, SIGTERM), --limit is reached, packet() says
 * stop or the engine goes away; idle() whenever there is none for the moment.  Returns the exit
 * code; what was lost has been said on stderr. */
int tracer_run(struct tracer *, tracer_packet_fn *packet, void (*idle)(void *aux), void *aux);
void tracer_close(struct tracer *);

/* The VM of a vNIC; "" if it is not known. */
const char *tracer_vm(struct tracer *, const char *vnic);
/* Text of t->rule; NULL: not known. */
const char *tracer_rule(struct tracer *, const struct moat_traced *t);

#endif /* control/cli/tracer.h */
