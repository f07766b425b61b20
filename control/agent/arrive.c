/* SPDX-License-Identifier: Apache-2.0 */

/* One table: policy missing decides before state missing, because without policy
 * there is nothing that state could belong to. */

#include "arrive.h"

#include <stdio.h>
#include <string.h>

const char *arrive_from_name(enum arrive_from from)
{
    static const char *const names[] = {"default", "host file", "database", "hand-over"};

    return (unsigned)from < 4 ? names[from] : "?";
}

static void decided(struct arrive_out *out, const char *setting, unsigned value,
                    enum arrive_from from)
{
    out->decided = true;
    snprintf(out->by, sizeof out->by, "%s=%s (%s)", setting, moat_fail_name(value),
             arrive_from_name(from));
}

void arrive_decide(const struct arrive_in *in, struct arrive_out *out)
{
    memset(out, 0, sizeof *out);
    strcpy(out->by, "none");
    if (!in->has_policy) {
        /* The engine applies it: such a slot has no ruleset. */
        decided(out, "on-missing-policy", in->settings->on_missing_policy, in->settings_from);
        return;
    }
    if (in->why == MIG_OPEN_COMPLETE)
        return;
    decided(out, "on-missing-state", in->settings->on_missing_state, in->settings_from);
    switch (in->settings->on_missing_state) {
    case MOAT_FAIL_ALLOW:
        out->pickup_s = ARRIVE_FOREVER_S;
        break;
    case MOAT_FAIL_PICKUP:
        out->pickup_s = in->settings->pickup_s;
        break;
    default:
        out->pickup_s = 0;
    }
}

static bool word(const char *text, enum moat_fail *fail)
{
    if (text && !strcmp(text, "allow"))
        *fail = MOAT_FAIL_ALLOW;
    else if (text && !strcmp(text, "block"))
        *fail = MOAT_FAIL_BLOCK;
    else
        return false;
    return true;
}

enum moat_fail arrive_host_setting(const char *in_database, const char *in_file,
                                   enum arrive_from *from)
{
    enum moat_fail fail;

    *from = FROM_DATABASE;
    if (word(in_database, &fail))
        return fail;
    *from = FROM_HOST_FILE;
    if (word(in_file, &fail))
        return fail;
    *from = FROM_NOWHERE;
    return MOAT_FAIL_BLOCK;
}

void arrive_orphan(enum moat_fail on_missing_policy, struct moat_settings *s)
{
    moat_settings_init(s);
    s->on_missing_policy = (uint8_t)on_missing_policy;
    s->quarantine = 1;
    s->spoof = MOAT_SPOOF_OFF; /* nobody knows what its addresses are */
}

bool arrive_tap_down(const char *in_database, const char *in_file)
{
    enum arrive_from from;

    /* Unlike the others, this one acts on what Moat does not own: it must have
     * been asked for. */
    return arrive_host_setting(in_database, in_file, &from) == MOAT_FAIL_BLOCK &&
           from != FROM_NOWHERE;
}
