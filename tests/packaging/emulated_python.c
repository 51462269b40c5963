/* What stands in a board's root file system for its Python: it runs the real one, which lies beside it, under the
 * emulator. So scripts start there as they do on the board, and so do the children that they start, on a host whose
 * kernel has not been told what to do with programs of another processor. */
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char *before[] = {EMULATOR, "-cpu", CPU, "-0", argv[0], REAL};
    int ours = sizeof before / sizeof *before;
    char **words = calloc(ours + argc, sizeof *words);
    for (int i = 0; i < ours; i++)
        words[i] = before[i];
    for (int i = 1; i < argc; i++)
        words[ours + i - 1] = argv[i];
    execv(EMULATOR, words);
    return 127;
}
