/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_ENGINE_H
#define MOAT_CLI_ENGINE_H 1

/* This host's engine: connecting, choosing slots, and the names of rules. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli.h"
#include "ctl_client.h"

/* Connects, or returns a negative errno with the reason in words in `why`. */
int engine_try_open(const struct cli *, struct moat_ctl **, char *why, size_t why_size);
/* The same, but says what went wrong and what to do. */
bool engine_open(const struct cli *, struct moat_ctl **);
void engine_say_unreachable(const struct cli *, int rc, const char *why);
/* Says that a request failed; returns CLI_FAILED. */
int engine_say(const struct cli *, const struct moat_ctl *);

/* The slots of a vNIC (NULL: any) and of a VM (NULL: any), by VM and id; free().
 * If nothing fits it says so and returns false. */
bool engine_slots(const struct cli *, struct moat_ctl *, const char *vnic, const char *vm,
                  struct moat_slot_info **, size_t *n);

/* The policy that the database has now: what the numbers of rules mean. */
struct rulebook {
    struct moat_policy *policy; /* NULL: not known */
    uint64_t generation;
    char *why; /* it is not known */
    struct rule_line {
        bool known;
        bool is_builtin;
        unsigned line;
        char *text;
    } * lines; /* by number, filled as they are asked for */
    uint32_t n_lines;
};

/* Never fails, and waits no longer than two seconds for the database. */
void rulebook_open(struct rulebook *, const struct cli *);
void rulebook_close(struct rulebook *);
/* A rule of that generation as text ("allow ..."), or NULL if that is not known; *line is
 * 0 or where it stands: in the base tier's text if *is_builtin.  It lives in the book. */
const char *rulebook_text(struct rulebook *, uint64_t generation, uint32_t rule, unsigned *line,
                          bool *is_builtin);

#endif /* control/cli/engine.h */
