/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_TRACED_H
#define MOAT_CLI_TRACED_H 1

/* A judged packet (struct moat_traced) for people and programs: the same for those of a live
 * engine and of an offline replay. */

#include <stdbool.h>

#include "moat/ctl.h"
#include "out.h"

/* Columns that a table with judged packets must have, besides its own. */
#define TRACED_COLUMNS                                                                             \
    {"direction", "DIR", OUT_LEAST(7)}, {"packet_text", "PACKET", OUT_LEAST(46)},                  \
        {"frame_len", "LEN", OUT_RIGHT | OUT_LEAST(5)}, {"verdict", "VERDICT", OUT_LEAST(7)},      \
        {"why_text", "WHY", OUT_LEAST(16)},                                                        \
    {                                                                                              \
        "session_text", "SESSION", OUT_LEAST(24)                                                   \
    }
#define TRACED_RULE_COLUMN                                                                         \
    {                                                                                              \
        "rule_label", "RULE", 0                                                                    \
    }
#define TRACED_JSON_COLUMNS                                                                        \
    {"flow", NULL, 0}, {"vlan", NULL, 0}, {"tcp_flags", NULL, 0}, {"reason", NULL, 0},             \
        {"by", NULL, 0}, {"slot_state", NULL, 0}, {"rule", NULL, 0}, {"rule_text", NULL, 0},       \
    {                                                                                              \
        "session", NULL, 0                                                                         \
    }

/* Sets them in the last row.  rule_text is that of t->rule, or NULL if it is not known; explain:
 * say what the reason means. */
void traced_put(struct out *, const struct moat_traced *t, const char *rule_text, bool explain);

/* Does t->rule mean anything? */
bool traced_has_rule(const struct moat_traced *t);

/* One line that says it all, for the comment of a captured packet.  The caller frees it. */
char *traced_comment(const struct moat_traced *t, const char *rule_text);

#endif /* control/cli/traced.h */
