; A boot sector that does what an operating system does, to tell a KVM that works from one that only says so.
;
; It reports each stage with one letter on the debug console (port 0xE9), and the end through isa-debug-exit (0xF4):
;
;   R  real mode: the firmware found and started this sector
;   P  protected mode
;   L  long mode, that is: paging
;   T  32 timer interrupts woke the halted processor
;   X  LOCK CMPXCHG16B, as Linux uses it to hand out memory: a KVM that interprets the guest's code lacks it
;   S  64 million instructions were computed: hardware needs some 20 ms, emulation 150 ms, an interpreter a minute
;
; acceleration.py holds the assembled bytes; a unit test demands that this source still yields them:
;
;   nasm -f bin kvm_probe.asm -o kvm_probe.bin

DEBUG_CONSOLE   equ 0xE9
DEBUG_EXIT      equ 0xF4
PASSED          equ 0x2A                ; qemu then exits with (0x2A << 1) | 1 = 85

LOAD            equ 0x7C00
PAGE_TABLES     equ 0x1000              ; three pages: PML4, PDPT, PD
IDT             equ 0x4000
TIMER_VECTOR    equ 0x20
TICKS           equ 32
PIT_DIVISOR     equ 1193                ; 1193182 Hz / 1193: one tick each millisecond
ROUNDS          equ 32_000_000          ; of two instructions

%macro stage 1
        mov     al, %1
        out     DEBUG_CONSOLE, al
%endmacro

%macro outb 2                           ; port, value
        mov     al, %2
        out     %1, al
%endmacro

        org     LOAD
        bits    16

start:  cli
        cld
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, LOAD
        jmp     0:real_mode             ; some firmware starts at 07C0:0000

real_mode:
        stage   'R'
        mov     di, PAGE_TABLES         ; identity mapping of the first 2 MiB by one large page
        mov     cx, 0x3000 / 2
        xor     ax, ax
        rep     stosw
        mov     word [PAGE_TABLES], PAGE_TABLES + 0x1000 + 3        ; present, writable
        mov     word [PAGE_TABLES + 0x1000], PAGE_TABLES + 0x2000 + 3
        mov     word [PAGE_TABLES + 0x2000], 0x83                   ; present, writable, large
        lgdt    [gdtr]
        mov     eax, cr0
        or      al, 1                   ; CR0.PE
        mov     cr0, eax
        jmp     CODE32:protected_mode

        bits    32
protected_mode:
        mov     ax, DATA
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        stage   'P'
        mov     eax, cr4
        or      al, 1 << 5              ; CR4.PAE
        mov     cr4, eax
        mov     eax, PAGE_TABLES
        mov     cr3, eax
        mov     ecx, 0xC0000080         ; EFER
        rdmsr
        or      ah, 1                   ; EFER.LME
        wrmsr
        mov     eax, cr0
        or      eax, 1 << 31            ; CR0.PG
        mov     cr0, eax
        jmp     CODE64:long_mode

        bits    64
long_mode:
        mov     esp, LOAD
        stage   'L'
        mov     edi, IDT + TIMER_VECTOR * 16
        mov     dword [rdi], CODE64 << 16 | tick - start + LOAD
        mov     dword [rdi + 4], 0x8E00 ; interrupt gate; the handler lies below 64 KiB
        mov     qword [rdi + 8], 0
        lidt    [idtr]
        outb    0x20, 0x11              ; first interrupt controller: vectors from 0x20, timer only
        outb    0x21, TIMER_VECTOR
        outb    0x21, 4
        outb    0x21, 1
        outb    0x21, 0xFE
        outb    0x43, 0x34              ; timer channel 0, rate generator
        outb    0x40, PIT_DIVISOR & 0xFF
        outb    0x40, PIT_DIVISOR >> 8
        xor     ebx, ebx
.sleep: sti                             ; takes effect after HLT began: no tick is missed between the two
        hlt
        cli
        cmp     ebx, TICKS
        jb      .sleep
        stage   'T'

        mov     esi, IDT                ; aligned to 16 bytes, as the instruction demands
        lock cmpxchg16b [rsi]
        stage   'X'

        mov     ecx, ROUNDS
.count: dec     ecx
        jnz     .count
        stage   'S'
        outb    DEBUG_EXIT, PASSED
        hlt

tick:   push    rax
        inc     ebx
        outb    0x20, 0x20              ; end of interrupt
        pop     rax
        iretq

        align   8
gdt:    dq      0
        dq      0x00CF9A000000FFFF
        dq      0x00CF92000000FFFF
        dq      0x00AF9A000000FFFF
gdtr:   dw      $ - gdt - 1
        dd      gdt
idtr:   dw      (TIMER_VECTOR + 1) * 16 - 1
        dq      IDT
CODE32  equ     0x08
DATA    equ     0x10
CODE64  equ     0x18

        times   510 - ($ - $$) db 0
        dw      0xAA55
