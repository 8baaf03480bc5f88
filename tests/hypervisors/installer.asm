; An installation CD in miniature: it copies a guest to the first hard disk, and restarts the machine.
;
; The firmware loads this sector and those that follow it on the CD (El Torito, no emulation). tests/hypervisors/discs.py
; puts the first sectors of a BootChain guest there.

LOAD            equ 0x7C00
SECTORS         equ 2
HARD_DISK       equ 0x80

        org     LOAD
        bits    16

start:  cli
        cld
        xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, LOAD
        sti
        mov     ax, 0x4300              ; extended write, without verify
        mov     dl, HARD_DISK
        mov     si, packet
        int     0x13
        jc      fail
        mov     al, 0xFE                ; the keyboard's controller resets the machine
        out     0x64, al
.stop:  hlt
        jmp     .stop

fail:   mov     si, no_disk
print:  lodsb
        test    al, al
        jz      start.stop
        mov     ah, 0x0E
        mov     bx, 7
        int     0x10
        jmp     print

        align   4
packet: db      16, 0
        dw      SECTORS
        dw      guest, 0
        dq      0
no_disk: db     "Disk error", 0

        times   512 - ($ - $$) db 0
guest:
